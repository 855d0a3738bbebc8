"""What a method may look at."""

from vtc.signals.signals import *  # noqa: F403
