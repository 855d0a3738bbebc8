"""A folder that cannot be written, at every call that writes: one line with the folder, the reason and the remedy."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

from vtc.errors import VTCError
from vtc.eval.benchmarks.jsonl import JSONL
from vtc.eval.costs.interleaved import Turns
from vtc.eval.report import plots
from vtc.eval.running.run import evaluate
from vtc.files.atomic import write_text
from vtc.files.lock import lock

QUICK = {"repeats": 0, "overlays": 1, "batch_size": 5, "progress": False, "max_new_tokens": 4}
CALLS = {  # what a run writes with
    "make the folder": (Path, "mkdir"),
    "lock it": (FileLock, "acquire"),
    "make a file": (tempfile, "mkstemp"),
    "sync": (os, "fsync"),
    "rename": (os, "replace"),
}
REASONS = {
    errno.ENOSPC: "No space left on device.*make room",
    errno.EDQUOT: "Disk quota exceeded.*make room",
    errno.EROFS: "Read-only file system.*give a folder that may be written",
    errno.EACCES: "Permission denied.*give a folder that may be written",
    errno.ESTALE: "Stale file handle.*put the folder back",
}


def failing(monkeypatch, owner, name, code, after=0):
    """The call raises this error, but for the first ``after`` times."""
    real, calls = getattr(owner, name), []

    def call(*args, **options):
        calls.append(1)
        if len(calls) > after:
            raise OSError(code, os.strerror(code))
        return real(*args, **options)

    monkeypatch.setattr(owner, name, call)


@pytest.fixture
def go(vlm, rows, write_rows, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    file = write_rows(rows[:2])
    return lambda: evaluate(*vlm, JSONL(data=file), ["random"], [0.5], tmp_path / "out", **QUICK)


@pytest.mark.parametrize("code", REASONS, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", CALLS)
def test_a_refusal_is_told_in_words(call, code, go, monkeypatch):
    with monkeypatch.context() as patch:
        failing(patch, *CALLS[call], code)
        with pytest.raises(VTCError, match=rf"out.* cannot be written \({REASONS[code]}"):
            go()
    assert go().summary["cells"]["random@0.5"]["questions"] == 2, "the same command goes on"


@pytest.mark.parametrize("call", ["make a file", "sync", "rename"])
@pytest.mark.parametrize("after", range(1, 8))
def test_a_disk_that_fills_up_at_any_file(call, after, go, monkeypatch):
    """Settings, answers, costs, summary, tables, a picture, the report."""
    with monkeypatch.context() as patch:
        failing(patch, *CALLS[call], errno.ENOSPC, after)
        with pytest.raises(VTCError, match=r"cannot be written \(No space left on device\); make room"):
            go()
    results = go()
    assert results.summary["cells"]["random@0.5"]["questions"] == 2
    assert not list(results.folder.rglob(".tmp-*"))


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "inside"):
        with pytest.raises(VTCError, match="cannot be written .*give a folder that may be written"):
            lock(folder)
        with pytest.raises(VTCError, match="cannot be written .*give a folder that may be written"):
            write_text(folder / "table.md", "new")
    assert (tmp_path / "file").read_text() == "mine"


def test_measurements_of_a_folder_that_is_gone(tmp_path):
    (tmp_path / "run").mkdir()
    turns = Turns(tmp_path / "run" / "measured.jsonl", {"repeats": 1})
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with pytest.raises(VTCError, match=r"measured.jsonl cannot be written .*put the folder back"):
        turns.take("cost", ["a"], 1, lambda number, name: {"ms": 1.0})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(VTCError, match=r"out cannot be written \(Permission denied\)"):
            lock(tmp_path / "out")
    finally:
        tmp_path.chmod(0o700)
