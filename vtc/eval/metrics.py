"""Scores and what may be said of them: exact match, standard error, retention."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, ASCII punctuation deleted, white space collapsed (the exact match of GQA; articles stay)."""
    return " ".join(text.lower().translate(PUNCTUATION).split())


def exact_match(answer: str, expected: Sequence[str]) -> float:
    """1.0 when the normalised answer equals any of the expected ones, else 0.0."""
    return float(normalise(answer) in {normalise(e) for e in expected})


def standard_error(mean: float, mean_square: float, count: int) -> float:
    """Standard error of a mean of ``count`` scores, from the mean of the scores and of their squares."""
    if count < 2:
        return math.nan
    return math.sqrt(max(mean_square - mean * mean, 0.0) / (count - 1))


def retention(accuracy: float, full: float, floor: float) -> float:
    """What is left of what the picture teaches: (accuracy - floor) / (full - floor); NaN when it teaches nothing."""
    return (accuracy - floor) / (full - floor) if full > floor else math.nan
