"""``scripts/train_learned.py``: trains, goes on where it stopped, and measures what it saved."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_learned.py"


def run(*options: str) -> str:
    command = [sys.executable, str(SCRIPT), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent.parent)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, budgets",
    [
        ("perceiver:layer=3:candidates=4:latents=64:rest=[1,2,4,5]", (12, 3)),
        ("act_learned", (12, 3)),
        ("router", (40, 30)),
    ],
)
def test_it_trains_goes_on_and_measures(method, budgets, tmp_path):
    where = ("--work", str(tmp_path / "pictures"), "--output", str(tmp_path / "run"))
    options = ("--method", method, "--pictures", "32", "--budgets", *map(str, budgets), *where)
    first = run("--minutes", "0.05", *options)
    steps, seconds = (int(found) for found in re.search(r"done: (\d+) steps, (\d+)s", first).groups())
    longer = str((seconds + 2) / 60)  # more than has been spent, so at least a step is left, however slow they are
    second = run("--minutes", longer, "--resume", *options)
    assert int(re.search(r"done: (\d+) steps", second)[1]) > steps > 0
    asked = ("--budgets", str(budgets[1]), "--questions", "18", "--against", "divprune+share")
    run("--evaluate", str(tmp_path / "run"), *asked)
    (row,) = json.loads((tmp_path / "run" / "test.json").read_text())["rows"]
    assert row[0] == budgets[1] and 0 < row[1] <= budgets[1] and 0 <= row[2] <= 1
