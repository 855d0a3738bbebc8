"""Calibration error and the bins of a reliability diagram against numbers worked out by hand; the specification's
vectors are in ``test_metrics_golden``."""

from __future__ import annotations

import math

import pytest

from vtc.errors import DataError
from vtc.eval.metrics.ece import BINS, Reliability, calibration_error


def reliability(confidences, scores):
    out = Reliability()
    for sure, score in zip(confidences, scores, strict=True):
        out.add(sure, score)
    return out


def test_by_hand():
    assert calibration_error([0.7] * 10, [1] * 7 + [0] * 3) == pytest.approx(0.0)
    assert calibration_error([0.9, 0.9, 0.1, 0.1], [1, 0, 0, 0]) == pytest.approx(0.5 * 0.4 + 0.5 * 0.1)
    assert calibration_error([1.0, 0.95], [0, 1]) == pytest.approx((1 + 0.05) / 2), "1 has a bin of its own"
    assert calibration_error([0.5], [0.3]) == pytest.approx(0.2), "graded scores"
    assert calibration_error([0.9, 0.1], [1, 1], norm="l2") == pytest.approx(math.sqrt((0.01 + 0.81) / 2))


def test_bins():
    found = reliability([0.0, 1 / 15, 0.998, 0.999, 1.0], [0, 1, 1, 0, 1])
    bins = found.bins()
    assert len(bins) == BINS + 1 and bins[0]["low"] == 0.0 and bins[-1]["low"] == bins[-1]["high"] == 1.0
    assert [b["count"] for b in bins] == [1, 1, *[0] * 12, 2, 1]
    assert bins[-2]["accuracy"] == 0.5 and bins[-2]["confidence"] == pytest.approx(0.9985)
    assert bins[5]["accuracy"] is None and bins[5]["confidence"] is None
    assert found.mean_confidence() == pytest.approx((1 / 15 + 2.997) / 5) and math.isnan(Reliability().error())


@pytest.mark.parametrize("wrong", [1.1, -0.1, math.nan])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(DataError, match="no probability"):
        Reliability().add(wrong, 1)
    with pytest.raises(DataError, match="2 confidences for 1 answers"):
        calibration_error([0.1, 0.2], [1])
    with pytest.raises(DataError, match="at least 1"):
        calibration_error([0.1], [1], bins=0)
    with pytest.raises(DataError, match="l1, l2 or max"):
        calibration_error([0.1], [1], norm="l3")
