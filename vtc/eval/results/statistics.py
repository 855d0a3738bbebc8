"""What may be said of scores: standard error, retention, paired change."""

from __future__ import annotations

import math
from typing import Any


def standard_error(mean: float, mean_square: float, count: int) -> float:
    """Standard error of a mean of ``count`` scores, from the mean of the scores and of their squares."""
    if count < 2:
        return math.nan
    return math.sqrt(max(mean_square - mean * mean, 0.0) / (count - 1))


def wilson(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share of ``count`` answers (Wilson 1927): inside [0, 1], and of some width also where all
    are right or wrong. For scores between 0 and 1 it is wider than it need be."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
    return max(middle - reach, 0.0), min(middle + reach, 1.0)


def retention(accuracy: float, full: float, floor: float) -> float:
    """What is left of what the picture teaches: (accuracy - floor) / (full - floor); NaN when it teaches nothing."""
    return (accuracy - floor) / (full - floor) if full > floor else math.nan


def paired_change(scores: Any, base: Any) -> tuple[float, float, float]:
    """``(mean, low, high)`` of score - base (two lists or arrays) over the questions (by place; NaN = not answered)
    both have answered: the mean change and its 95 % interval by the percentile bootstrap over questions (2,000
    resamples, a fixed seed). NaN without such a question.

    A resample of n questions is drawn as how often each of the different changes comes (multinomial), which is the
    same distribution: of scores with few values millions of questions take no time, and their order does not matter.
    """
    import numpy as np

    both = min(len(scores), len(base))
    change = np.asarray(scores)[:both] - np.asarray(base)[:both]
    values, counts = np.unique(change[~np.isnan(change)], return_counts=True)
    n = int(counts.sum())
    if len(values) < 2:
        return (float(values[0]),) * 3 if n else (math.nan,) * 3
    draw = np.random.default_rng(0)
    means = [draw.multinomial(n, counts / n) @ values / n for _ in range(2000)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(counts @ values / n), float(low), float(high)
