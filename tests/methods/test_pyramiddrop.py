import pytest
import torch

from tests.golden import cases
from tests.pictures import batch, picture
from tests.tolerances import assert_close, assert_same
from vtc.kernels.received_attention import received_attention
from vtc.methods.base import Stage
from vtc.methods.pyramiddrop import PyramidDrop
from vtc.signals.text_attention import TextAttention


def rotate(x, base):
    """Rotary positions 0 .. L - 1 on ``x [B, H, L, d]``, half-split."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[2])[:, None] * base ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def probe(given, params, last):
    """``[B, L]``: the next layer's attention of row ``last[b]``, from the states at its entry, mean over heads."""
    x = given["x"]
    h = x * (x.square().mean(-1, keepdim=True) + params["rms_eps"]).rsqrt() * given["norm_weight"]
    q, k = (
        rotate((h @ given[w].T).unflatten(2, (params["heads"], -1)).transpose(1, 2), params["rope_base"])
        for w in ("wq", "wk")
    )
    return received_attention(q, k, last[:, None], last[:, None] + 1, given["attention_mask"]).mean(1)


@pytest.mark.parametrize(("given", "want", "params"), cases("pyramiddrop"))
def test_equals_the_authors(given, want, params):
    stage, ratios = params["stage"], params["ratios"]
    counts = [int(n * ratios[stage]) for n in params["image_tokens_stage0"]]
    keep = [int(n * ratios[stage + 1]) for n in params["image_tokens_stage0"]]
    attention = probe(given, params, torch.tensor(params["prompt_len"]) + torch.tensor(counts) - 1)
    tokens = batch([picture((1, 1, n), 1) for n in counts])
    score = torch.stack([a[s : s + max(counts)] for a, s in zip(attention, params["prefix"], strict=True)])
    got = PyramidDrop().reduce(stage, tokens, {TextAttention("next"): score}, keep)
    assert_same("kept", got.anchor, want["keep"])
    assert_close("score of the last sample", score[-1], want["last_sample_score"])


def test_stages_and_powers():
    method = PyramidDrop()
    assert method.stages() == (Stage(0.25, 1), Stage(0.5, 2), Stage(0.75, 3))
    assert [s.index(32) for s in method.stages()] == [8, 16, 24]
    assert [s.index(8) for s in method.stages()] == [2, 4, 6]
    assert PyramidDrop(layers=[8, 16]) == PyramidDrop(layers=(8, 16))
    assert hash(PyramidDrop(layers=[8, 16])) == hash(PyramidDrop(layers=(8, 16)))


@pytest.mark.parametrize(
    "layers",
    [(), 3, "345", None, (2, 2), (4, 2), (0.5, 0.25), (1, 0.5), (-1, 2), (0.5, 1.0), (True, 2), (1, float("nan"))],
)
def test_bad_layers(layers):
    with pytest.raises(ValueError, match=r"layers?.*(give|must increase)"):
        PyramidDrop(layers=layers)
