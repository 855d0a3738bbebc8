"""Scores against the definitions, worked out by hand. The golden files are in test_metrics_golden.py."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vtc.errors import DataError
from vtc.eval.metrics import exact_match, mean, means
from vtc.eval.metrics.boxes import iou, parse_box, rescale
from vtc.eval.metrics.ece import calibration_error
from vtc.eval.metrics.mmmu import drawn_letter, mmmu_letter, open_score
from vtc.eval.metrics.options import circular, mmbench_letter, scienceqa_score, seed_letter
from vtc.eval.metrics.reading import anls, relaxed_accuracy
from vtc.eval.metrics.text import gqa_match, ocr_match
from vtc.eval.metrics.vqa import consensus, textvqa_accuracy, vqa_accuracy, vqa_normalise
from vtc.eval.metrics.yes_no import binary_figures, mme_answer, mme_scores, pope_answer


def test_means():
    assert mean([0.1] * 10) == 0.1 and math.isnan(mean([]))
    assert means([("b", 1.0), ("a", 0.0), ("b", 0.0)]) == {"a": 0.0, "b": 0.5}


@pytest.mark.parametrize(("alike", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_soft_accuracy_of_ten(alike, score):
    expected = ["red"] * alike + [f"other {n}" for n in range(10 - alike)]
    assert consensus("red", expected) == pytest.approx(score)
    assert vqa_accuracy("Red.", [*expected, "blue"][:10]) == pytest.approx(score if alike < 10 else 0)


def test_vqa_normalises_only_where_people_differ():
    assert vqa_accuracy("Yes", ["yes"] * 10) == 0 and textvqa_accuracy("Yes", ["yes"] * 10) == 1
    assert vqa_accuracy("Yes", ["yes"] * 9 + ["no"]) == 1
    assert vqa_accuracy("two dogs", ["2 dogs"] * 9 + ["dogs"]) == 1
    assert vqa_normalise("The dont, 1,000.") == "don't 1000" and vqa_normalise("a-b") == "b"


@given(st.text(max_size=30))
def test_vqa_normal_forms_have_no_articles_and_no_double_blanks(text):
    words = vqa_normalise(text).split(" ")
    assert not {"a", "an", "the", "zero", "ten"} & set(words) and (words == [""] or "" not in words)


@example("", ["INFINITY"])
@given(st.text(max_size=20), st.lists(st.text(max_size=20), min_size=1, max_size=4))
def test_scores_stay_between_0_and_1_and_what_is_expected_is_right(answer, expected):
    for score in (vqa_accuracy, textvqa_accuracy, anls, exact_match, ocr_match, open_score):
        assert 0 <= score(answer, expected) <= 1
    for score in (anls, exact_match, ocr_match):
        assert score(expected[0], expected) == 1
    # The official code reads these as numbers, and neither is within 5 % of itself.
    endless = expected[0].strip().strip("+-%").strip().lower() in ("nan", "inf", "infinity")
    assert relaxed_accuracy(expected[0], expected[0]) == 1 or endless
    assert gqa_match(expected[0], expected[0]) == 1


def test_anls():
    assert anls("hello", ["Hello", "bye"]) == 1
    assert anls("abcd", ["abxy"]) == 0.5, "exactly one half counts"
    assert anls("abcde", ["abxyz"]) == 0, "below one half counts nothing"
    assert anls("", [""]) == 1 and anls("x", []) == 0


@pytest.mark.parametrize(
    ("answer", "expected", "score"),
    [
        ("10.5", "10", 1),
        ("10.6", "10", 0),
        ("0.05", "5%", 1),
        ("5", "5%", 0),
        ("0.0", "0", 0),
        ("Yes", "yes", 1),
        (" yes", "yes", 0),
    ],
)
def test_relaxed_accuracy(answer, expected, score):
    assert relaxed_accuracy(answer, expected) == score


def test_pope():
    assert [pope_answer(r) for r in ("No, it is.", "NO", "Yes. no", "there is not one", "")] == [
        *("no", "yes", "yes", "no", "yes")
    ]
    assert pope_answer("Yes.", strict=True) == "yes."
    figures = binary_figures(["yes", "yes", "no", "yes"], ["yes", "no", "yes", "no"])
    assert figures["precision"] == pytest.approx(1 / 3) and figures["recall"] == 0.5
    assert figures["f1"] == pytest.approx(0.4) and figures["accuracy"] == 0.25 and figures["yes_ratio"] == 0.75
    assert binary_figures(["no"], ["no"])["f1"] == 0, "no yes at all is not an error"


def test_mme():
    assert [mme_answer(r) for r in ("Yes.", "y", "N", "x", "  no way", "I say no")] == [
        *("yes", "yes", "no", "other", "no", "other")
    ]
    rows = [("count", "a", 1.0), ("count", "a", 1.0), ("count", "b", 1.0), ("count", "b", 0.0)]
    assert mme_scores(rows)["count"] == (200 + 50) / 2
    assert mme_scores([*rows, ("OCR", "a", 1.0), ("OCR", "a", 1.0)])["perception"] == 325
    with pytest.raises(DataError, match="'b' of count has 1"):
        mme_scores(rows[:3])


def test_letters():
    options = {"A": "cat", "B": "dog", "C": "caterpillar"}
    replies = ("B", "(C)", "A cat is seen here", "a dog", "The answer is C", "")
    assert [mmbench_letter(r, options) for r in replies] == ["B", "C", "A", "B", "C", None]
    assert [scienceqa_score(r, "B") for r in ("b", "B. dog", "(B)", "")] == [1, 1, 0, 0]
    assert [seed_letter(r) for r in ("b", " Bad", "")] == ["B", "B", ""]
    assert circular([(1, 1.0), (1_000_001, 0.0), (2, 1.0), (1_000_002, 1.0)]) == {1: 0.0, 2: 1.0}


def test_mmmu():
    assert mmmu_letter("(B) or (A)", ["x", "y"]) == "A", "the last one said"
    assert mmmu_letter("none of it", ["x", "y"]) is None
    assert drawn_letter(["x", "y", "z"], "0:q") == drawn_letter(["x", "y", "z"], "0:q")
    assert {drawn_letter(["x", "y", "z"], str(n)) for n in range(50)} == {"A", "B", "C"}
    assert open_score("so the answer is 3.141", ["3.14"]) == 1 and open_score("x", ["y"]) == 0


def test_boxes():
    assert parse_box("at [0.1, .2, 0.5, 1]") == (0.1, 0.2, 0.5, 1.0)
    assert parse_box("(10,20),(30,40)") == (10, 20, 30, 40)
    assert parse_box("1, 2, 3") is None and parse_box("") is None
    assert rescale((10, 20, 30, 40), (100, 200), "unit") == pytest.approx((0.1, 0.1, 0.3, 0.2))
    assert rescale((10, 20, 30, 40), (100, 200), "thousand") == pytest.approx((100, 100, 300, 200))
    assert rescale((10, 20, 30, 40), (100, 200), "pixels") == (10, 20, 30, 40)
    with pytest.raises(DataError, match="unit, thousand, pixels"):
        rescale((0, 0, 1, 1), (1, 1), "percent")
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert iou((0, 0, 1, 1), (2, 2, 3, 3)) == 0 and iou((1, 1, 0, 0), (0, 0, 1, 1)) == 0


SIDES = st.tuples(*[st.floats(0, 100)] * 4).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)


@given(SIDES, SIDES)
def test_iou_is_symmetric_and_bounded(one, other):
    assert iou(one, other) == pytest.approx(iou(other, one)) and 0 <= iou(one, other) <= 1 + 1e-9


def test_calibration_error():
    assert calibration_error([0.9] * 10, [1] * 9 + [0]) == pytest.approx(0, abs=1e-12)
    assert calibration_error([0.9] * 10, [0] * 10) == pytest.approx(0.9)
    assert calibration_error([0.1, 0.9], [1, 1], norm="max") == pytest.approx(0.9)
    assert math.isnan(calibration_error([], []))
    for confidence, correct in (([1.5], [1]), ([math.nan], [1]), ([0.5, 0.5], [1])):
        with pytest.raises(DataError):
            calibration_error(confidence, correct)
