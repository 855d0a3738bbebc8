"""What a method may look at, one signal a file. ``base`` says what a signal declares: where it is captured while the
model runs (``hook``, ``capture``) and how that becomes a value per token (``read``). The engine installs and asks it.
``vtc.signals.TextAttention()`` builds one.
"""

from vtc.registry import Registry
from vtc.signals.base import Signal as Signal

registry: Registry[type[Signal]] = Registry("signal", "vtc.signals", group="vtc.signals")
register = registry.register
__getattr__, __dir__ = registry.by_class()
