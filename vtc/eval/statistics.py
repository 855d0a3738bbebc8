"""What may be said of scores: standard error, retention, paired change."""

from __future__ import annotations

import math
from collections.abc import Mapping


def standard_error(mean: float, mean_square: float, count: int) -> float:
    """Standard error of a mean of ``count`` scores, from the mean of the scores and of their squares."""
    if count < 2:
        return math.nan
    return math.sqrt(max(mean_square - mean * mean, 0.0) / (count - 1))


def retention(accuracy: float, full: float, floor: float) -> float:
    """What is left of what the picture teaches: (accuracy - floor) / (full - floor); NaN when it teaches nothing."""
    return (accuracy - floor) / (full - floor) if full > floor else math.nan


def paired_change(scores: Mapping[str, float], base: Mapping[str, float]) -> tuple[float, float, float]:
    """``(mean, low, high)`` of score - base over the questions both have answered: the mean change and its 95 %
    interval by the percentile bootstrap over questions (2,000 resamples, a fixed seed). NaN without such a question."""
    import numpy as np
    from scipy.stats import bootstrap

    change = np.array([scores[key] - base[key] for key in sorted(scores.keys() & base.keys())])
    if len(change) < 2 or (change == change[0]).all():
        return (float(change[0]),) * 3 if len(change) else (math.nan,) * 3
    found = bootstrap(
        (change,), np.mean, n_resamples=2000, batch=200, method="percentile", rng=np.random.default_rng(0)
    )
    return float(change.mean()), float(found.confidence_interval.low), float(found.confidence_interval.high)
