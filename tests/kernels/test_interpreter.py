"""The same cases against the Triton kernels, in Triton's interpreter: no GPU, a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [f"tests/kernels/test_{name}.py" for name in ("received_attention", "merge_op", "match", "greedy_diverse")]


def run(*words: str) -> str:
    """pytest's last line in a process where every operation is its kernel."""
    pytest.importorskip("triton")
    one = dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"
    )  # threads make the interpreter 10 times slower
    environment = {**os.environ, **one, "TRITON_INTERPRET": "1", "VTC_KERNELS": "triton"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    command = [sys.executable, "-W", "ignore", "-m", "pytest", "-p", "no:xdist", *words]
    out = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stdout[-4000:] + out.stderr[-2000:]
    return out.stdout.splitlines()[-1]


def test_kernels_pass_the_cases_of_the_reference():
    assert "passed" in run(*FILES, "-k", "kernel and not opcheck and not float16 and not dtype1", "-m", "not slow")


@pytest.mark.slow
def test_kernels_pass_all_cases():
    assert "passed" in run(*FILES, "tests/test_merge.py")
