"""A test file once more, in a process of its own where Triton's kernels run in its interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "TRITON_INTERPRET": "1",  # read when a kernel is decorated, so it can not be set later
    "VTC_KERNELS": "triton",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",  # with more, each of the many small products waits for threads
    "OPENBLAS_NUM_THREADS": "1",
}


def run_interpreted(file: str, choose: str) -> None:
    """Run the tests of ``tests/kernels/<file>.py`` that ``choose`` (pytest's -k) names; all of them must pass."""
    pytest.importorskip("triton", reason="Triton is not installed, so its interpreter is not either")
    command = [sys.executable, "-m", "pytest", f"tests/kernels/{file}.py", "-k", choose, "-m", "not slow", "--tb=short"]
    env = {name: value for name, value in os.environ.items() if "XDIST" not in name} | SETTINGS
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    told = done.stdout[-6000:] + done.stderr[-2000:]
    assert done.returncode == 0 and " passed" in done.stdout, told  # skipped ones alone would be 0 too
