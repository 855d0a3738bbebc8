"""Killed at any moment, a run goes on: nothing lost, nothing doubled, the same bytes in the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(("which", "runs"), [("quick", 3), pytest.param("all", 25, marks=pytest.mark.slow)])
def test_killed_and_resumed(which, runs, rows, write_rows):
    file = write_rows(rows)
    command = [sys.executable, "-m", "tests.eval.running.killed", str(file), which]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    codes = json.loads(done.stdout.splitlines()[-1])
    assert len(codes) == runs
    whole = contents(file.parent / "whole")
    assert {"results.jsonl", "summary.json", "table.md", "measured.json", "config.json"} < set(whole)
    assert ("pareto.png" in whole) == (which == "all") and any(name.startswith("overlays") for name in whole)
    answered = Counter()
    for line in map(json.loads, whole["results.jsonl"].splitlines()):
        answered[line["cell"], line.get("id", "closed")] += 1
    assert set(answered.values()) == {1} and len(answered) == 12 * 4 + 1
    for name, (*killed, last) in codes.items():
        assert last == 0 and set(killed) <= ({-9} if name.startswith("point") else {-9, 0})
        left = contents(file.parent / name)
        assert set(left) == set(whole), name
        for path, data in whole.items():
            assert left[path] == data, (name, path)
