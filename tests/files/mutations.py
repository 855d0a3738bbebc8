"""One thing changed anywhere in plain data: what a reader must refuse, or read as what it then says."""

from __future__ import annotations

import random

VALUES = [None, True, False, 0, -1, 1, 2, 10**9, 10**30, 0.5, -1e308, "", "grid", "😀", [], [[]], {}, [1, 2], {"a": 1}]


def mutated(value, at: random.Random):
    """``value`` with one thing changed anywhere inside it."""
    if isinstance(value, dict) and value and at.random() < 0.9:
        key = at.choice(sorted(value))
        changed = dict(value)
        kind = at.random()
        if kind < 0.1:
            del changed[key]
        elif kind < 0.2:
            changed[at.choice(["spam", "method", "sha256", key + "x"])] = changed.pop(key)
        else:
            changed[key] = mutated(value[key], at)
        return changed
    if isinstance(value, list) and value and at.random() < 0.8:
        n = at.randrange(len(value))
        return [*value[:n], mutated(value[n], at), *value[n + 1 :]]
    if isinstance(value, str) and value and at.random() < 0.4:
        n = at.randrange(len(value))
        return value[:n] + at.choice("0aZ\0é/") + value[n + 1 :]
    return at.choice(VALUES)
