"""Killed at any moment, a run goes on: nothing lost, nothing doubled, the same bytes in the end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("points", "moments"), [(5, 1), pytest.param(13, 7, marks=pytest.mark.slow)])
def test_killed_and_resumed(points, moments, rows, write_rows):
    file = write_rows(rows)
    command = [sys.executable, "-m", "tests.eval.killed", str(file), str(points), str(moments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    codes = json.loads(done.stdout.splitlines()[-1])
    assert len(codes) == points + moments
    whole = file.parent / "whole"
    for name, (*killed, last) in codes.items():
        folder = file.parent / name
        assert last == 0 and set(killed) <= {-9, 0}
        if name.startswith("point"):
            assert killed == [-9]
        answered = Counter()
        for line in (folder / "results.jsonl").read_text().splitlines():
            row = json.loads(line)
            answered[row["cell"], row.get("id", "closed")] += 1
        assert set(answered.values()) == {1} and len(answered) == 12 * 4 + 1
        for file_name in ("summary.json", "results.jsonl", "table.md"):
            assert (folder / file_name).read_bytes() == (whole / file_name).read_bytes(), (name, file_name)
