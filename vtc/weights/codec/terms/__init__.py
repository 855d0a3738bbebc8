"""The terms a compressed weight is a sum of, one a file: ``W = mask * dequant(Q) + U V + ...``. ``base`` says what a
term is."""

from __future__ import annotations

from typing import Any

from vtc.errors import CheckpointError
from vtc.registry import Registry
from vtc.weights.codec.terms.base import Term

registry: Registry[type[Term]] = Registry("term of a weight", __name__, group="vtc.terms")
register = registry.register


def read_term(written: dict[str, Any]) -> Term:
    """What ``written`` wrote. Raises ``CheckpointError`` for another kind or other fields."""
    fields = dict(written)
    kind = fields.pop("kind", None)
    if kind not in registry:
        raise CheckpointError(f"no term of a weight is called {kind!r}; this vtc knows {', '.join(registry)}")
    try:
        return registry[kind](**fields)
    except TypeError as error:
        raise CheckpointError(f"term {kind}: {error}; the checkpoint is from another version of vtc") from error
