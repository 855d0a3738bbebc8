"""Every kernel compiles for sm_80 and sm_90, spills nothing, fits, is pipelined and loads 128 bits at a time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def check(*options: str) -> None:
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    if not (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas").exists():
        pytest.skip("this Triton comes without ptxas")
    command = [sys.executable, "scripts/check_kernels.py", *options]
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_the_small_set():
    check("--small")


@pytest.mark.slow
def test_everything():
    check()
