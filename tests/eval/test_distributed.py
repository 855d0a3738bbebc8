"""One run in several processes: the same bytes as in one, whoever was killed before, and no rank left waiting."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vtc.errors import VTCError
from vtc.eval.distributed import World, join

ROOT = Path(__file__).parents[2]
QUIET = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}


def same(folder: Path, other: Path) -> None:
    for name in ("summary.json", "results.jsonl", "table.md"):
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name
    assert {p.name for p in folder.iterdir()} == {p.name for p in other.iterdir()}


def runs(rows, write_rows, which: str) -> tuple[dict, Path, str]:
    """What the runs of ``ranked`` gave, their folder, and what they said."""
    rows[5]["image"] = "gone.png"
    file = write_rows(rows)
    command = [sys.executable, "-m", "tests.eval.ranked", str(file), which]
    done = subprocess.run(command, cwd=ROOT, env=QUIET, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1]), file.parent, done.stderr


def test_ranks_do_what_one_process_does(rows, write_rows):
    out, base, said = runs(rows, write_rows, "fresh")
    assert out["one"]["codes"] == [0] and out["one"]["seen"][0][0] == 1
    assert out["two"]["codes"] == [0, 0]
    sizes, asked = zip(*out["two"]["seen"], strict=True)
    assert sizes == (2, 2) and min(asked) >= 8, "both ranks worked"
    same(base / "two", base / "one")
    assert out["failing"]["codes"] == [1, 1]
    assert "this rank is broken" in said and "another rank has ended" in said


@pytest.mark.slow
def test_another_number_of_ranks_goes_on(rows, write_rows):
    out, base, _ = runs(rows, write_rows, "moved")
    assert out["killed"]["codes"] == [-9, -9] and out["killed again"]["codes"] == [-9] * 3
    assert out["moved"]["codes"] == [0] * 3 and out["alone"]["codes"] == [0]
    fresh = out["one"]["seen"][0][1]
    assert sum(asked for _, asked in out["moved"]["seen"]) < fresh and out["alone"]["seen"][0][1] < fresh
    same(base / "moved", base / "one")
    same(base / "alone", base / "one")


def test_alone_there_is_nobody_to_wait_for(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join() == World(0, 1) and join().first and join().wait() is None
    assert [World(1, 3).mine(n) for n in range(4)] == [False, True, False, False]


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    import torch

    for name, value in {"WORLD_SIZE": "4", "LOCAL_RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(VTCError, match="give --nproc_per_node 2"):
        join()


@pytest.mark.slow
def test_torchrun(rows, write_rows, tmp_path):
    from tests.eval.tiny import tiny_llava, tiny_processor

    file = write_rows(rows)
    tiny_llava().save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")

    def ask(output, *more, start=("vtc.cli",)):
        run = ["-m", *start, "eval", "--model", tmp_path / "model", "--data", file, "--methods", "random"]
        quick = ["--timing-repeats", 0, "--overlays", 0, "--batch-size", 2, "--device", "cpu", "--budgets", "0.5"]
        command = [sys.executable, *map(str, [*run, "--output", tmp_path / output, *quick, *more])]
        return subprocess.run(command, cwd=ROOT, env=QUIET, capture_output=True, text=True)

    two = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "vtc.cli")
    one, ranked = ask("one"), ask("two", start=two)
    assert one.returncode == 0 and ranked.returncode == 0, ranked.stderr[-3000:]
    assert ranked.stdout.count("unpatched") == one.stdout.count("unpatched") >= 1, "only one rank prints"
    same(tmp_path / "two", tmp_path / "one")
    failed = ask("two", "--max-new-tokens", 2, start=two)
    assert failed.returncode != 0 and "other settings" in failed.stderr
