"""Scores of answers, as pure functions, one family a file. When two answers are the same ``answers`` defines; the other
files equal the official code of their benchmarks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

from vtc.eval.metrics.answers import exact_match, normalise

__all__ = ["exact_match", "mean", "means", "normalise"]


def mean(values: Iterable[float]) -> float:
    """The mean, the same whatever the order of the values; NaN of none."""
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


def means(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    """The mean of the values under each key, keys sorted."""
    groups: dict[str, list[float]] = defaultdict(list)
    for key, value in pairs:
        groups[key].append(value)
    return {key: mean(groups[key]) for key in sorted(groups)}
