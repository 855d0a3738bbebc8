"""Reduction methods, one a file: tokens and signals in, a slot for each token out (``base`` says what a method is).

``vtc.methods.FastV(layer=2)`` builds one, ``vtc.methods.registry`` names them all, ``@register("name")`` adds one.
"""

from vtc.methods.base import Method as Method
from vtc.methods.base import Stage as Stage
from vtc.registry import Registry

registry: Registry = Registry("method", "vtc.methods", group="vtc.methods")
register = registry.register


def __getattr__(name: str):
    if name.startswith("_"):
        raise AttributeError(name)
    for _, method in registry.items():
        if method.__name__ == name:
            return method
    raise AttributeError(f"vtc.methods has no {name!r}; there are {', '.join(m.__name__ for _, m in registry.items())}")


def __dir__() -> list[str]:
    return sorted([*globals(), *(m.__name__ for _, m in registry.items())])
