"""What is said of scores, against numbers worked out by hand."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from scipy.stats import bootstrap

from vtc.eval.results.statistics import paired_change, retention, standard_error


def test_standard_error_is_that_of_the_mean():
    scores = [1.0, 0.0, 0.5, 1.0, 1.0]
    mean, square = statistics.mean(scores), statistics.mean(s * s for s in scores)
    assert standard_error(mean, square, 5) == pytest.approx(statistics.stdev(scores) / math.sqrt(5))
    assert math.isnan(standard_error(1.0, 1.0, 1))


def test_retention():
    assert retention(0.6, 0.8, 0.4) == pytest.approx(0.5)
    assert retention(0.9, 0.8, 0.4) > 1
    assert math.isnan(retention(0.5, 0.4, 0.4))


def test_paired_change():
    base = [float(n % 2) for n in range(200)]
    assert paired_change(base, base) == (0.0, 0.0, 0.0)
    worse = [0.0] * 100 + base[100:]
    middle, low, high = paired_change(worse, base)
    assert middle == pytest.approx(-0.25) and -0.32 < low < -0.25 < high < -0.18
    assert paired_change(worse, base) == (middle, low, high), "the same scores, the same interval"
    assert paired_change(worse[::-1], base[::-1]) == (middle, low, high), "in any order"
    assert paired_change([math.nan, 0.0], base) == (-1.0, -1.0, -1.0), "only questions that both answered"
    assert all(map(math.isnan, paired_change([], base)))


def test_paired_change_is_the_percentile_bootstrap():
    """Against SciPy's, which draws the questions one by one."""
    draw = np.random.default_rng(3)
    base, scores = draw.integers(0, 2, 300).astype(float), draw.choice([0.0, 1 / 3, 1.0], 300)
    found = bootstrap((scores - base,), np.mean, n_resamples=20_000, batch=500, method="percentile", rng=draw)
    wanted = found.confidence_interval
    _, low, high = paired_change(scores, base)
    width = wanted.high - wanted.low
    assert abs(low - wanted.low) < 0.05 * width and abs(high - wanted.high) < 0.05 * width
