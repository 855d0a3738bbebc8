"""Expected calibration error: how far confidence is from accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vtc.errors import DataError


def calibration_error(confidence: Sequence[float], correct: Sequence[float], bins: int = 15, norm: str = "l1") -> float:
    """|accuracy - confidence| over ``bins`` equal bins of confidence, weighted by their share of the answers.

    ``norm``: ``l1`` (ECE), ``l2`` (its root mean square) or ``max`` (the worst bin). A bin holds its left edge and not
    its right one; a confidence of exactly 1 has a bin of its own (torchmetrics). NaN of no answers.
    Raises ``DataError`` for a confidence outside 0 to 1.
    """
    c, right = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if c.shape != right.shape or bins < 1 or norm not in ("l1", "l2", "max"):
        raise DataError(
            f"{c.size} confidences for {right.size} answers, {bins} bins, norm {norm!r}; give one for each, at least 1 "
            "bin, and l1, l2 or max"
        )
    if not ((c >= 0) & (c <= 1)).all():
        raise DataError("a confidence is outside 0 to 1; give probabilities")
    if not c.size:
        return math.nan
    index = np.searchsorted(np.linspace(0, 1, bins + 1), c, side="right") - 1
    count = np.bincount(index, minlength=bins + 1)
    gap = np.abs(np.bincount(index, c - right, bins + 1)) / np.maximum(count, 1)
    share = count / c.size
    values = {"l1": (share * gap).sum(), "l2": math.sqrt((share * gap**2).sum()), "max": gap.max()}
    return float(values[norm])
