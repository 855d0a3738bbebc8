import pytest
import torch

from tests.golden import cases
from tests.methods.test_sparsevlm import raters_of, spans
from tests.pictures import batch, picture, plain
from tests.tolerances import assert_close, assert_same
from vtc.methods.sparsevlm_v2 import SparseVLMv2
from vtc.signals.rater_attention import RaterAttention, gravity

SEEN = RaterAttention(gravity=True)


@pytest.mark.parametrize(("given", "want", "params"), cases("sparsevlm_v2"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_authors(given, want, params, dtype):
    vision, text = spans(params)
    raters = raters_of(given, params, dtype)
    assert_same("raters", raters, want["raters"])
    width = params["head_dim"]
    pull = gravity(torch.arange(int(text[-1]) + 1), width, dtype)[text[raters][:, None] - vision]
    assert pull.min() > 0.1, "no pair of rows is far enough for the bound"
    by_head = (given["text_rows"].to(dtype)[:, raters] / pull).mean(1).T[None]
    tokens = plain(given["hidden"][None, vision].to(dtype))
    got = SparseVLMv2().reduce(0, tokens, {SEEN: by_head}, [len(want["keep"])])
    assert_same("kept", got.anchor[0], want["keep"])
    chosen = by_head[0].sum(0).argsort(descending=True)[:14]
    assert_close("score", by_head[0][:, chosen].mean(1) / width**0.5, want["score"])


def test_heads_that_look_at_the_picture_rank():
    tokens = batch([picture((1, 1, 4), 1), picture((1, 1, 3), 2)])
    by_head = torch.zeros(2, 4, 3)
    by_head[0] = torch.tensor([[0, 1, 0], [0, 2, 0], [4, 3, 9], [0, 4, 0]])
    by_head[1] = torch.tensor([[5, 1, 0], [0, 2, 0], [0, 3, 0], [torch.nan, torch.nan, torch.nan]])
    got = SparseVLMv2(heads=1).reduce(0, tokens, {SEEN: by_head}, [2, 1])
    assert got.anchor.tolist() == [[2, 3], [2, -1]]
    by_head[0, 2] = torch.nan
    got = SparseVLMv2(heads=1).reduce(0, tokens, {SEEN: by_head}, [3, 3])
    assert got.anchor.tolist() == [[0, 1, 3], [0, 1, 2]], "a NaN ranks last, and does not choose the heads"
    by_head[:] = 1
    got = SparseVLMv2(heads=99).reduce(0, tokens, {SEEN: by_head}, [1, 1])
    assert got.anchor.tolist() == [[0], [0]]


@pytest.mark.parametrize("heads", [0, -1, 2.0, True, "14", None])
def test_bad_heads(heads):
    with pytest.raises(ValueError, match=r"heads=.* is not an int >= 1"):
        SparseVLMv2(heads=heads)


@pytest.mark.parametrize("layers", [(), (0, 2), (0.5, 0.25)])
def test_bad_layers(layers):
    with pytest.raises(ValueError, match=r"layers.*(give|must increase)"):
        SparseVLMv2(layers=layers)
