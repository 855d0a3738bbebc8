"""Nothing in vtc asks for Linux: what was never run there is at least written for other systems (docs/platforms.md)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_imports_runs_and_saves_where_nothing_is_of_posix(tmp_path):
    command = [sys.executable, "-m", "tests.elsewhere", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.splitlines()[0]) > 300, "files of vtc were imported"
