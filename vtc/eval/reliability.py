"""Does a probability mean what it says? Expected calibration error (Naeini et al. 2015; Guo et al. 2017, arXiv
1706.04599) and the bins of a reliability diagram."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

BINS = 15


def reliability(confidences: Sequence[float], scores: Sequence[float]) -> list[dict[str, Any]]:
    """The ``BINS`` bins of equal width: ``low``, ``high``, ``count`` and the mean ``confidence`` and ``accuracy`` in it
    (None in an empty one). A bin holds low <= confidence < high, the last one 1 as well. Raises ``ValueError`` for a
    confidence outside [0, 1], or lists of different lengths."""
    import numpy as np

    sure, right = np.asarray(confidences, float), np.asarray(scores, float)
    if sure.shape != right.shape:
        raise ValueError(f"{sure.size} confidences and {right.size} scores; give one of each for every answer")
    if not ((sure >= 0) & (sure <= 1)).all():
        raise ValueError(f"a confidence of {sure[~((sure >= 0) & (sure <= 1))][0]} is no probability; give 0 to 1")
    edges = np.arange(BINS + 1) / BINS
    place = np.minimum(np.searchsorted(edges, sure, side="right") - 1, BINS - 1)
    out = []
    for n in range(BINS):
        held = place == n
        means = [float(each[held].mean()) if held.any() else None for each in (sure, right)]
        low, high, count = float(edges[n]), float(edges[n + 1]), int(held.sum())
        out.append({"low": low, "high": high, "count": count, "confidence": means[0], "accuracy": means[1]})
    return out


def expected_calibration_error(bins: Sequence[dict[str, Any]]) -> float:
    """Mean distance of accuracy from confidence over the bins, each weighed by its count. NaN without answers."""
    total = sum(each["count"] for each in bins)
    gaps = [each["count"] * abs(each["accuracy"] - each["confidence"]) for each in bins if each["count"]]
    return sum(gaps) / total if total else math.nan
