"""What tower signals keep of one attention call, against the definition written out."""

import pytest
import torch

from tests.tolerances import assert_close
from vtc.signals.base import TowerCall
from vtc.signals.tower_attention import TowerAttention
from vtc.signals.tower_keys import TowerKeys

HEADS, SHARED, TOKENS, WIDTH = 4, 2, 9, 8


@pytest.fixture
def call():
    torch.manual_seed(0)
    q = torch.randn(2, HEADS, TOKENS, WIDTH, dtype=torch.float64)
    k = torch.randn(2, SHARED, TOKENS, WIDTH, dtype=torch.float64)
    return TowerCall(q, k, None, 0.3, cls=1)


def wide(x):
    """All heads of a token side by side, shared ones repeated: ``[T, n, H d]``."""
    return x.repeat_interleave(HEADS // x.shape[1], dim=1).transpose(1, 2).flatten(2)


def test_of_each_head(call):
    k = call.k.repeat_interleave(HEADS // SHARED, dim=1)
    weight = (call.q @ k.mT * call.scale).softmax(dim=-1)
    assert_close("from the CLS row", TowerAttention().capture(call).double(), weight[:, :, 0].sum(dim=1))
    assert_close("from all", TowerAttention(rows="all").capture(call).double(), weight.mean(dim=2).sum(dim=1))


def test_of_all_heads_joined(call):
    """PruMerge's attention is that of one head as wide as all: its scale is the root of the whole width."""
    weight = (wide(call.q) @ wide(call.k).mT / (HEADS * WIDTH) ** 0.5).softmax(dim=-1)
    assert_close("joined", TowerAttention(joined=True).capture(call).double(), weight[:, 0])


def test_keys(call):
    assert_close("mean over heads", TowerKeys().capture(call), call.k.mean(dim=1))
    assert_close("side by side", TowerKeys(joined=True).capture(call), wide(call.k))
