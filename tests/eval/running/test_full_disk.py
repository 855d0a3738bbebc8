"""A disk that fills up: one line, exit code 1, nothing torn, and the same command goes on."""

from __future__ import annotations

import json
import resource
from contextlib import contextmanager

import pytest

from tests.eval.results.lines import answer
from vtc.errors import VTCError
from vtc.eval.benchmarks.jsonl import JSONL
from vtc.eval.report import plots
from vtc.eval.results.journal import Journal
from vtc.eval.results.json_lines import read, write_all
from vtc.eval.running.run import evaluate
from vtc.files.atomic import write_text

QUICK = {"repeats": 0, "overlays": 0, "batch_size": 5, "progress": False, "max_new_tokens": 4}


@contextmanager
def no_file_beyond(size: int):
    """The system refuses what goes beyond ``size`` bytes of a file, as a full disk does: a part is taken first."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_answers_that_do_not_fit_are_cut_off_whole(tmp_path):
    lines = [answer("a", n, answer="x" * 100) for n in range(9)]
    with Journal(tmp_path, {"cells": ["a"]}) as journal:
        journal.append(lines[:2])
        with no_file_beyond(1500), pytest.raises(VTCError, match=r"results.jsonl cannot be written .*same command"):
            journal.append(lines[2:])
    kept = list(read(tmp_path / "results.jsonl"))
    assert 2 < len(kept) < 9 and kept == lines[: len(kept)]  # what was taken whole stays
    with Journal(tmp_path, {"cells": ["a"]}) as journal:
        journal.append(lines)
    assert list(read(tmp_path / "results.jsonl")) == lines


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    write_text(tmp_path / "table.md", "old")
    with no_file_beyond(1000), pytest.raises(VTCError, match=r"table.md cannot be written .*make room"):
        write_text(tmp_path / "table.md", "new" * 1000)
    assert [p.name for p in tmp_path.iterdir()] == ["table.md"] and (tmp_path / "table.md").read_text() == "old"


def test_short_writes_go_on():
    class Slow:
        taken = b""

        def write(self, data):
            self.taken += data[:3]
            return len(data[:3])

    stream = Slow()
    write_all(stream, b"0123456789")
    assert stream.taken == b"0123456789"


@pytest.mark.parametrize(("name", "questions"), [("results.jsonl", 6), ("summary.json", 2)])
def test_a_run_goes_on_when_there_is_room_again(name, questions, vlm, rows, write_rows, tmp_path, monkeypatch):
    """The named file is the first that does not fit."""
    monkeypatch.setattr(plots, "available", lambda: False)
    file = write_rows(rows[:questions])

    def go(folder):
        return evaluate(*vlm, JSONL(data=file), ["random"], [0.5], tmp_path / folder, **QUICK)

    whole = go("whole").folder
    with no_file_beyond((whole / name).stat().st_size - 50), pytest.raises(VTCError, match=f"{name}.*make room"):
        go("full")
    json.loads((tmp_path / "full" / "config.json").read_text())
    assert not list((tmp_path / "full").glob(".tmp-*"))
    go("full")
    for path in whole.iterdir():
        assert (tmp_path / "full" / path.name).read_bytes() == path.read_bytes()
