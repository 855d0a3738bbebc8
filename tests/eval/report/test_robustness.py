"""What each cell loses under corruptions, beside what the unpatched model loses."""

from __future__ import annotations

import json
import math
from array import array

import pytest

from vtc.eval.asking.corruptions import KINDS
from vtc.eval.benchmarks.jsonl import JSONL
from vtc.eval.report import plots
from vtc.eval.report.robustness import drops, markdown, measure
from vtc.eval.running.run import evaluate


def scores(text):
    return array("d", map(float, text))


def test_drops_by_hand():
    clean = {"unpatched": scores("1111111110"), "grid": scores("1111111100")}
    noisy = {"unpatched": scores("1111111010"), "grid": scores("0000111100")}
    found = drops(clean, {"noise": noisy})
    base, grid = found["unpatched"]["noise"], found["grid"]["noise"]
    assert (grid["questions"], grid["accuracy"], grid["drop"]) == (10, 0.4, pytest.approx(0.4))
    middle, low, high = grid["excess"]
    assert middle == pytest.approx(0.3) and low < middle < high
    assert base["drop"] == pytest.approx(0.1) and base["excess"] == (0.0, 0.0, 0.0)
    page = markdown({"severity": {"noise": 0.1}, "order": list(found), "cells": found})
    assert "| unpatched | all | 10.0 |" in page and "| grid | all | 40.0 (+30.0 [" in page


def test_only_questions_answered_both_times_count():
    clean = {"unpatched": scores("11"), "grid": scores("11")}
    found = drops(clean, {"blur": {"unpatched": scores("1"), "grid": scores("0")}, "jpeg": {}})["grid"]
    assert found["blur"] == {"questions": 1, "accuracy": 0.0, "drop": 1.0, "excess": (1.0, 1.0, 1.0)}
    assert found["jpeg"]["accuracy"] is None and math.isnan(found["jpeg"]["excess"][0])


def test_every_kind_is_a_run_of_its_own(vlm, rows, write_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    benchmark, folder = JSONL(data=write_rows(rows[:4])), tmp_path / "out"
    quick = {"repeats": 0, "overlays": 0, "progress": False, "max_new_tokens": 2}

    def ask(source, output):
        return evaluate(*vlm, source, ["random"], [0.5], output, **quick)

    clean = ask(benchmark, folder).summary
    found = measure(folder, benchmark, ask)
    assert json.loads((folder / "robustness.json").read_text()) == json.loads(json.dumps(found))
    for kind in KINDS:
        there = json.loads((folder / "robustness" / kind / "summary.json").read_text())
        assert there["settings"]["benchmark"]["corruption"] == kind
        for name in ("unpatched", "random@0.5"):
            figures = found["cells"][name][kind]
            assert figures["accuracy"] == there["cells"][name]["accuracy"]
            assert figures["drop"] == clean["cells"][name]["accuracy"] - figures["accuracy"]
    page = (folder / "robustness.md").read_text()
    read = json.loads((folder / "robustness.json").read_text())
    assert page == markdown(found) == markdown(read), "a file's keys are sorted, the table is not"
    assert "| method | budget | noise | blur | jpeg | contrast | typo |" in page
    assert "| random | 50 % |" in page and "jpeg 15" in page
    assert measure(folder, benchmark, ask) == found
