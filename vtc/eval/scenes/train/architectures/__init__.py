"""The models that the testbed can train, one a file, found by name."""

from vtc.eval.scenes.train.model import Architecture
from vtc.registry import Registry

registry: Registry[type[Architecture]] = Registry("architecture", __name__)
register = registry.register
