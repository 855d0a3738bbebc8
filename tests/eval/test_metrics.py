"""Scores against numbers worked out by hand."""

from __future__ import annotations

import math
import statistics

import pytest

from vtc.eval.metrics import exact_match, normalise, retention, standard_error


def test_normalise():
    assert normalise("  A T-Shirt. ") == "a tshirt"
    assert normalise("Yes!") == "yes"


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("Yes.", ["yes"], 1),
        ("t-shirt", ["tshirt"], 1),
        ("a cat", ["cat"], 0),
        ("cat", ["dog", "Cat"], 1),
        ("", ["no"], 0),
    ],
)
def test_exact_match(answer, expected, score):
    assert exact_match(answer, expected) == score


def test_standard_error_is_that_of_the_mean():
    scores = [1.0, 0.0, 0.5, 1.0, 1.0]
    mean, square = statistics.mean(scores), statistics.mean(s * s for s in scores)
    assert standard_error(mean, square, 5) == pytest.approx(statistics.stdev(scores) / math.sqrt(5))
    assert math.isnan(standard_error(1.0, 1.0, 1))


def test_retention():
    assert retention(0.6, 0.8, 0.4) == pytest.approx(0.5)
    assert retention(0.9, 0.8, 0.4) > 1
    assert math.isnan(retention(0.5, 0.4, 0.4))
