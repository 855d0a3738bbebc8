"""Calibration error against numbers worked out by hand, and against the specification's vectors where they are."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from vtc.eval.reliability import BINS, expected_calibration_error, reliability

GOLDEN = Path(__file__).parents[3] / "shared/golden/metrics/ece.jsonl"


def ece(confidences, scores):
    return expected_calibration_error(reliability(confidences, scores))


def test_by_hand():
    assert ece([0.7] * 10, [1] * 7 + [0] * 3) == pytest.approx(0.0)
    assert ece([0.9, 0.9, 0.1, 0.1], [1, 0, 0, 0]) == pytest.approx(0.5 * 0.4 + 0.5 * 0.1)
    assert ece([1.0, 0.95], [0, 1]) == pytest.approx(0.475), "1 belongs to the last bin"
    assert ece([0.5], [0.3]) == pytest.approx(0.2), "graded scores"
    assert math.isnan(ece([], []))


def test_bins():
    bins = reliability([0.0, 1 / 15, 0.999, 1.0], [0, 1, 1, 0])
    assert len(bins) == BINS and bins[0]["low"] == 0.0 and bins[-1]["high"] == 1.0
    assert [b["count"] for b in bins] == [1, 1, *[0] * 12, 2]
    assert bins[-1]["accuracy"] == 0.5 and bins[-1]["confidence"] == pytest.approx(0.9995)
    assert bins[5]["accuracy"] is None and bins[5]["confidence"] is None


@pytest.mark.parametrize("wrong", [[1.1], [-0.1], [math.nan]])
def test_what_is_no_probability_is_refused(wrong):
    with pytest.raises(ValueError, match="no probability"):
        reliability(wrong, [1])
    with pytest.raises(ValueError, match="2 confidences and 1 scores"):
        reliability([0.1, 0.2], [1])


@pytest.mark.skipif(not GOLDEN.exists(), reason="the specification's vectors are not beside the repository")
def test_golden_vectors():
    cases = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    assert len(cases) == 84
    for case in cases:
        if "probabilities" in case:
            chosen = [(max(row), row.index(max(row))) for row in case["probabilities"]]
            sure = [p for p, _ in chosen]
            right = [name == label for (_, name), label in zip(chosen, case["labels"], strict=True)]
            expected = case["ece_15"]
        else:
            sure, right = case["confidence"], case["correct"]
            expected = case["ece_by_bin_convention"]["left_closed_last_closed"]
        assert ece(sure, right) == pytest.approx(expected, abs=1e-6), case["id"]
        if not case.get("convention_sensitive"):
            assert ece(sure, right) == pytest.approx(case["ece_15"], abs=1e-6), case["id"]
