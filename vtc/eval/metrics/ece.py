"""Does a probability mean what it says? Reliability diagrams and the expected calibration error (Naeini et al. 2015;
Guo et al. 2017, arXiv 1706.04599)."""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from typing import Any

from vtc.errors import DataError

BINS = 15


class Reliability:
    """Running sums of confidence and score over ``bins`` equal bins of confidence.

    A bin holds its left edge and not its right one; a confidence of exactly 1 has a bin of its own (torchmetrics).
    """

    def __init__(self, bins: int = BINS) -> None:
        if bins < 1:
            raise DataError(f"{bins} bins; give at least 1")
        self.edges = [n / bins for n in range(bins + 1)]
        self.counts = [0] * (bins + 1)
        self.confidence = [0.0] * (bins + 1)
        self.score = [0.0] * (bins + 1)

    def add(self, confidence: float, score: float) -> None:
        """Takes an answer. Raises ``DataError`` for a confidence outside 0 to 1."""
        if not 0 <= confidence <= 1:
            raise DataError(f"a confidence of {confidence} is no probability; give 0 to 1")
        n = bisect(self.edges, confidence) - 1
        self.counts[n] += 1
        self.confidence[n] += confidence
        self.score[n] += score

    def error(self, norm: str = "l1") -> float:
        """|accuracy - confidence|, weighted by the bins' shares of the answers. ``norm``: ``l1`` (ECE), ``l2`` (its
        root mean square) or ``max`` (the worst bin). NaN of no answers."""
        if norm not in ("l1", "l2", "max"):
            raise DataError(f"norm {norm!r} is not known; give l1, l2 or max")
        full = [n for n, count in enumerate(self.counts) if count]
        if not full:
            return math.nan
        gaps = [abs(self.confidence[n] - self.score[n]) / self.counts[n] for n in full]
        shares = [self.counts[n] / sum(self.counts) for n in full]
        if norm == "max":
            return max(gaps)
        power = {"l1": 1, "l2": 2}[norm]
        return math.fsum(s * g**power for s, g in zip(shares, gaps, strict=True)) ** (1 / power)

    def mean_confidence(self) -> float:
        """NaN of no answers."""
        return math.fsum(self.confidence) / sum(self.counts) if any(self.counts) else math.nan

    def bins(self) -> list[dict[str, Any]]:
        """``low``, ``high``, ``count`` and the mean ``confidence`` and ``accuracy`` (None in an empty bin) of each."""
        out = []
        for n, count in enumerate(self.counts):
            means = [each[n] / count if count else None for each in (self.confidence, self.score)]
            low, high = self.edges[n], self.edges[min(n + 1, len(self.edges) - 1)]
            out.append({"low": low, "high": high, "count": count, "confidence": means[0], "accuracy": means[1]})
        return out


def calibration_error(
    confidence: Sequence[float], correct: Sequence[float], bins: int = BINS, norm: str = "l1"
) -> float:
    """``Reliability.error`` of lists. Raises ``DataError`` for lists of different lengths."""
    if len(confidence) != len(correct):
        raise DataError(f"{len(confidence)} confidences for {len(correct)} answers; give one for each")
    found = Reliability(bins)
    for sure, right in zip(confidence, correct, strict=True):
        found.add(float(sure), float(right))
    return found.error(norm)
