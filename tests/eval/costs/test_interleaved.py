"""Measurements survive being stopped, and are taken over under the same settings only."""

from __future__ import annotations

import json

import pytest

from vtc.errors import RunRefused
from vtc.eval.benchmarks.jsonl import JSONL
from vtc.eval.costs.interleaved import Turns
from vtc.eval.costs.timing import WARM_UP
from vtc.eval.report import plots
from vtc.eval.running.describe import machine
from vtc.eval.running.run import evaluate

SETTINGS = {"repeats": 2, "machine": {"node": "a", "threads": 1}}
CELLS = ("unpatched", "random@4", "grid@4")


def take(path, stop=99, settings=SETTINGS, warm_up=0):
    """(what is seen, which cells were measured, in order), or only the latter where it stopped."""
    calls = []

    def measure(number, cell):
        if len(calls) == stop:
            raise KeyboardInterrupt
        calls.append(cell)
        return {"ms": 0.1 * len(calls), "number": number}

    try:
        return Turns(path, settings).take("timing", CELLS, 2, measure, warm_up), calls
    except KeyboardInterrupt:
        return None, calls


def test_cells_take_turns(tmp_path):
    seen, calls = take(tmp_path / "m.jsonl", warm_up=1)
    assert calls == [*CELLS] * 3
    assert [turn["number"] for cell in CELLS for turn in seen[cell]] == [0, 0, 1, 1, 2, 2]
    assert [turn["ms"] for turn in seen["random@4"]] == [0.5, 0.8], "the turn to warm up is not counted"
    assert take(tmp_path / "m.jsonl", warm_up=1) == (seen, []), "nothing is measured twice"


@pytest.mark.parametrize("stop", range(6))
def test_what_was_stopped_goes_on(tmp_path, stop):
    _, before = take(tmp_path / "m.jsonl", stop)
    seen, after = take(tmp_path / "m.jsonl")
    assert before + after == [*CELLS] * 2 and {len(turns) for turns in seen.values()} == {2}


def test_what_is_behind_is_warmed_up_again(tmp_path):
    take(tmp_path / "m.jsonl", stop=7, warm_up=1)
    assert take(tmp_path / "m.jsonl", warm_up=1)[1] == ["random@4", "grid@4"] * 2


def test_a_torn_line_is_measured_again(tmp_path):
    path = tmp_path / "m.jsonl"
    whole, _ = take(path)
    path.write_bytes(path.read_bytes()[:-5])
    seen, calls = take(path)
    assert calls == ["grid@4"] and seen["random@4"] == whole["random@4"] and seen["grid@4"] != whole["grid@4"]


@pytest.mark.parametrize("change", [{"repeats": 3}, {"machine": {"node": "b", "threads": 1}}, {"batch": 2}], ids=str)
def test_other_settings_begin_anew(tmp_path, change):
    path = tmp_path / "m.jsonl"
    take(path, stop=4)
    assert take(path, settings=SETTINGS | change)[1] == [*CELLS] * 2
    assert json.loads(path.read_text().splitlines()[0])["settings"] == SETTINGS | change
    assert take(path)[1] == [*CELLS] * 2


def test_damage_is_named(tmp_path):
    take(tmp_path / "m.jsonl")
    lines = (tmp_path / "m.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "m.jsonl").write_text("".join([lines[0], "{\n", *lines[1:]]))
    with pytest.raises(RunRefused, match="m.jsonl:2 is damaged .*--overwrite"):
        take(tmp_path / "m.jsonl")


def test_a_run_goes_on_where_it_measured(vlm, rows, write_rows, tmp_path, monkeypatch):
    from vtc.eval.costs import timing

    monkeypatch.setattr(plots, "available", lambda: False)
    real, calls = timing.once, []

    def once(answerer, inputs):
        if len(calls) == 7:
            raise KeyboardInterrupt
        calls.append(1)
        return real(answerer, inputs)

    file = write_rows(rows[:4])

    def go(repeats=3):
        options = {"overlays": 0, "batch_size": 4, "progress": False, "max_new_tokens": 3}
        return evaluate(*vlm, JSONL(data=file), ["random"], [0.5, 4], tmp_path / "out", repeats=repeats, **options)

    monkeypatch.setattr(timing, "once", once)
    with pytest.raises(KeyboardInterrupt):
        go()
    assert not (tmp_path / "out" / "measured.json").exists()
    kept = (tmp_path / "out" / "measured.jsonl").read_bytes()
    assert kept.count(b'"timing"') == 7 - 3 * WARM_UP, "turns of three cells: base and two methods"
    calls[:] = [1] * 8
    results = go()
    assert (tmp_path / "out" / "measured.jsonl").read_bytes().startswith(kept)
    assert {entry["timing"]["repeats"] for entry in results.measured.values()} == {3}
    assert go().measured == results.measured, "the same command measures nothing more"
    head = json.loads(kept.splitlines()[0])["settings"]
    assert head == {"repeats": 3, "batch": 1, "machine": machine(vlm[0].device)}
    assert go(repeats=1).measured["random@4"]["timing"]["repeats"] == 1
