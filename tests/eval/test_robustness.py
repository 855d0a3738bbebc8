"""What each cell loses under corruptions, beside what the unpatched model loses."""

from __future__ import annotations

import json

import pytest

from vtc.eval import plots
from vtc.eval.benchmarks.jsonl import JSONL
from vtc.eval.corruptions import KINDS
from vtc.eval.robustness import drops, markdown, measure
from vtc.eval.run import evaluate


def summary(**accuracy):
    cells = {name: {"closed": "no"} if a is None else {"accuracy": a} for name, a in accuracy.items()}
    return {"order": list(accuracy), "cells": cells}


def test_drops_by_hand():
    clean = summary(unpatched=0.9, grid=0.8, fastv=None)
    found = drops(
        clean, {"noise": summary(unpatched=0.8, grid=0.5, fastv=None), "typo": summary(unpatched=0.9, grid=0.85)}
    )
    assert found["grid"]["noise"] == {"accuracy": 0.5, "drop": pytest.approx(0.3), "excess": pytest.approx(0.2)}
    assert found["grid"]["typo"] == {"accuracy": 0.85, "drop": pytest.approx(-0.05), "excess": pytest.approx(-0.05)}
    assert found["unpatched"]["noise"]["excess"] == 0.0 and "fastv" not in found
    assert drops(clean, {"blur": {"cells": {}}})["grid"]["blur"] == {"accuracy": None, "drop": None, "excess": None}


def test_every_kind_is_a_run_of_its_own(vlm, rows, write_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    benchmark, folder = JSONL(data=write_rows(rows[:4])), tmp_path / "out"
    quick = {"repeats": 0, "overlays": 0, "progress": False, "max_new_tokens": 2}

    def ask(source, to):
        return evaluate(*vlm, source, ["random"], [0.5], to, **quick).summary

    clean = ask(benchmark, folder)
    found = measure(clean, benchmark, folder, ask)
    assert json.loads((folder / "robustness.json").read_text()) == found
    for kind in KINDS:
        there = json.loads((folder / "robustness" / kind / "summary.json").read_text())
        assert there["settings"]["benchmark"]["corruption"] == kind
        for name in ("unpatched", "random@0.5"):
            figures = found["cells"][name][kind]
            assert figures["accuracy"] == there["cells"][name]["accuracy"]
            assert figures["drop"] == clean["cells"][name]["accuracy"] - figures["accuracy"]
    page = (folder / "robustness.md").read_text()
    assert page == markdown(found) and "| random | 50 % |" in page and "jpeg 15" in page
    again = measure(clean, benchmark, folder, ask)
    assert again == found
