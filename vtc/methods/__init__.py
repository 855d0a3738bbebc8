"""Reduction methods, one a file: tokens and signals in, a slot for each token out (``base`` says what a method is).

``vtc.methods.FastV(layer=2)`` builds one, ``vtc.methods.registry`` names them all, ``@register("name")`` adds one.
"""

from vtc.methods.base import Method as Method
from vtc.methods.base import Stage as Stage
from vtc.registry import Registry

registry: Registry = Registry("method", "vtc.methods", group="vtc.methods")
register = registry.register
__getattr__, __dir__ = registry.by_class()
