"""The terms a compressed weight is a sum of, one a file: ``W = mask * dequant(Q) + U V + ...``. ``base`` says what a
term is."""

from __future__ import annotations

import dataclasses
from typing import Any

from vtc.errors import CheckpointError
from vtc.registry import Registry
from vtc.weights.codec.terms.base import Term

registry: Registry[type[Term]] = Registry("term of a weight", __name__, group="vtc.terms")
register = registry.register


def read_term(written: Any) -> Term:
    """What ``written`` wrote. Raises ``CheckpointError`` for another kind, other fields, or values of another type."""
    fields = dict(written) if isinstance(written, dict) else {}
    kind = fields.pop("kind", None)
    if not isinstance(kind, str) or kind not in registry:
        raise CheckpointError(f"no term of a weight is called {str(kind)[:80]!r}; this vtc knows {', '.join(registry)}")
    make = registry[kind]
    for field in dataclasses.fields(make):
        value = fields.get(field.name, field.default)
        wanted = list if isinstance(field.default, tuple) else type(field.default)
        plain = field.default is not None and field.default is not dataclasses.MISSING
        if plain and type(value) not in (wanted, type(field.default)) or isinstance(value, str) and len(value) > 32:
            raise CheckpointError(f"term {kind}: {field.name} is {str(value)[:80]!r}, no {wanted.__name__}; save again")
    try:
        return make(**fields)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"term {kind}: {error}; the checkpoint is from another version of vtc") from error
