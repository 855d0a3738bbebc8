"""No N x N: 16,384 tokens, of which one float32 matrix would take 1,024 MiB, fit in a few blocks."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits memory as Linux does")

ROOT = Path(__file__).parents[2]
LIMIT = 250  # MiB beyond what is mapped; even a matrix of bools is 256

SCRIPT = """
import sys, torch
from tests.limit import at_most
from tests.own import known
from tests.pictures import batch, picture, ready, reduce
from vtc.kernels.greedy_diverse import greedy_diverse
from vtc.kernels.received_attention import received_attention
from vtc.methods import registry
from vtc.methods._share import share

torch.set_num_threads(1)
tokens, small = (batch([picture((1, n, n), 1)]) for n in (128, 4))
x = torch.randn(1, 1, 16384, 4)
ends = torch.arange(16384)[None] + 1
plain = {name: ready(method()) for name, method in known(registry).items() if name != "frozen"}  # it cuts nothing
work = {name: lambda t, m=m: reduce(m, t, [t.count[0] // 128 or 1]) for name, m in plain.items()}
work["share"] = lambda t: share(t, reduce(plain["random"], t, [t.count[0] // 8]))
work["received_attention"] = lambda t: received_attention(x[:, :, : t.count[0]], x[:, :, : t.count[0]])
work["received_attention, causal"] = lambda t: received_attention(x, x[:, :, :64], end=ends.clamp(max=64))
work |= {kind: lambda t, k=kind: greedy_diverse(t.features, 16, k, t.valid) for kind in ("dpp", "coverage")}
control = {"negative control": lambda t: torch.ones(t.count[0], t.count[0])}
for name, run in (control if "control" in sys.argv else work).items():
    run(small)
    try:
        with at_most(LIMIT):
            run(tokens)
        print("fits", name, sep="\\t")
    except (MemoryError, RuntimeError):
        print("breaks", name, sep="\\t")
"""


def outcome(*words: str) -> dict[str, str]:
    """Whether each piece of work fits under the limit, in a fresh process."""
    script = SCRIPT.replace("LIMIT", str(LIMIT))
    run = subprocess.run([sys.executable, "-c", script, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return {name: word for word, name in (line.split("\t") for line in run.stdout.splitlines())}


def test_no_matrix_of_tokens_by_tokens():
    found = outcome()
    assert len(found) > 8
    assert set(found.values()) == {"fits"}, found


def test_such_a_matrix_would_break_the_limit():
    assert outcome("control") == {"negative control": "breaks"}
