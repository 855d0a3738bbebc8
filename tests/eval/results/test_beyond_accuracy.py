"""Agreement, calibration and subgroups on lines whose figures can be worked out by hand."""

from __future__ import annotations

import math

import pytest

from tests.eval.report.test_tables import SETTINGS
from vtc.eval.report import tables
from vtc.eval.results.beyond_accuracy import Calibration, agreement, subgroups
from vtc.eval.results.replies import Replies
from vtc.eval.results.summary import summarise


def line(cell, n, answer, score, kind="color", confidence=0.9):
    said = {"answer": answer, "expected": ["red"], "score": score, "tokens": 4.0, "confidence": confidence}
    return {"cell": cell, "row": n, "id": str(n), "type": kind, "group": "g", **said}


BASE = [line("unpatched", n, "Red.", 1.0, ("color", "word")[n % 2]) for n in range(4)]
GRID = [
    line("grid@4", 0, "red", 1.0),
    line("grid@4", 1, "blue", 0.0, "word", 0.5),
    line("grid@4", 2, "RED", 1.0),
    {"cell": "grid@4", "row": 3, "id": "3", "type": "word", "group": "g", "error": "q:3: broken"},
]
FASTV = [{"cell": "fastv@4", "closed": "keeps all", "least": 5}]


@pytest.fixture
def summary():
    lines = [*BASE, *GRID, *FASTV]
    return summarise(lines, ["unpatched", "grid@4", "fastv@4"], {}) | {"settings": SETTINGS}


def replies(*lines):
    out = Replies()
    for each in lines:
        out.add(each)
    return out


def calibration(*lines):
    out = Calibration()
    for each in lines:
        out.add(each)
    return out.figures()


def test_agreement_is_over_what_both_have_answered(summary):
    assert summary["cells"]["grid@4"]["agreement"] == {
        "questions": 3,
        "same": pytest.approx(2 / 3),
        "right_to_wrong": pytest.approx(1 / 3),
        "wrong_to_right": 0.0,
    }
    assert summary["cells"]["unpatched"]["agreement"]["same"] == 1.0
    assert "agreement" not in summary["cells"]["fastv@4"]
    assert agreement(replies(), replies(BASE[0])) is None
    rose = agreement(replies(line("a", 1, "red", 1.0)), replies(line("b", 1, "blue", 0.3)))
    assert (rose["same"], rose["right_to_wrong"], rose["wrong_to_right"]) == (0.0, 0.0, 1.0)


def test_calibration(summary):
    found = summary["cells"]["grid@4"]["calibration"]
    assert found["confidence"] == pytest.approx(2.3 / 3)
    assert found["ece"] == pytest.approx(2 / 3 * 0.1 + 1 / 3 * 0.5)
    assert sum(each["count"] for each in found["bins"]) == 3
    assert calibration() is None
    assert calibration(line("a", 1, "red", 1.0), line("a", 2, "", 0.0, confidence=math.nan)) is None


def test_subgroups(summary):
    found = summary["cells"]["grid@4"]["subgroups"]
    assert found["types"] == {
        "worst": "word",
        "accuracy": 0.0,
        "questions": 1,
        "drop": 1.0,
        "gap": 1.0,
        "unpatched_worst": "color",
        "unpatched_gap": 0.0,
        "most_harmed": "word",
        "most_harmed_drop": 1.0,
    }
    assert found["groups"] is None, "one group has no gap"


def test_the_worst_need_not_be_the_most_harmed():
    def figures(**accuracy):
        return {name: {"accuracy": a, "questions": 10} for name, a in accuracy.items()}

    found = subgroups(figures(a=0.3, b=0.5), figures(a=0.35, b=0.95))
    assert (found["worst"], found["most_harmed"]) == ("a", "b")
    assert found["drop"] == pytest.approx(0.05) and found["most_harmed_drop"] == pytest.approx(0.45)
    assert found["gap"] == pytest.approx(0.2) and found["unpatched_gap"] == pytest.approx(0.6)
    unasked = {"accuracy": float("nan"), "questions": 0}
    assert subgroups(figures(a=0.3) | {"b": unasked}, figures(a=0.35, b=0.95)) is None


def test_the_table(summary):
    page = tables.markdown(summary, {})
    assert "Beyond accuracy" in page
    assert "| grid | 4 | 66.7 | 33.3 | 0.0 | 76.7 | 23.3 | word | 0.0 | 100.0 | 100.0 |" in page
    assert "| unpatched | all | 100.0 | 0.0 | 0.0 | 90.0 | 10.0 | - | 100.0 | 0.0 | 0.0 |" in page
    assert "fastv" not in page.split("Beyond accuracy")[1].split("\n\n")[1]
