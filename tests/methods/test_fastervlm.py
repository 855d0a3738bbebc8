import pytest
import torch

from tests.golden import cases
from tests.pictures import batch, picture, plain, reduce
from tests.tolerances import assert_same
from vtc.methods.fastervlm import FasterVLM
from vtc.signals.tower_attention import TowerAttention


@pytest.mark.parametrize(("given", "want", "params"), cases("fastervlm"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_authors(given, want, params, dtype):
    attention = given["attn"].to(dtype).sum(1)
    pictures, n = attention.shape
    tokens = plain(torch.zeros(pictures, n, 1, dtype=dtype))
    got = FasterVLM().reduce(0, tokens, {TowerAttention(-2): attention}, [params["T"]] * pictures)
    assert_same("kept", got.anchor, want["keep"])


def test_ties_go_to_the_lower_index_and_nan_ranks_last():
    tokens = batch([picture((1, 2, 3), 1)], 1)
    attention = torch.tensor([[1.0, torch.nan, 2.0, 2.0, 1.0, 0.0, 9.0]])  # the last one is padding
    keep = [FasterVLM().reduce(0, tokens, {TowerAttention(-2): attention}, [k]).anchor.tolist()[0] for k in (1, 3, 5)]
    assert keep == [[2], [0, 2, 3], [0, 2, 3, 4, 5]]


def test_only_drops():
    assert not reduce(FasterVLM(), batch([picture((1, 4, 4), 1)]), [5]).merges
