import pytest
import torch

from tests.golden import cases
from tests.pictures import batch, picture, plain
from tests.tolerances import assert_same
from vtc.methods.scope import Scope
from vtc.signals.tower_attention import TowerAttention


@pytest.mark.parametrize(("given", "want", "params"), cases("scope"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_authors(given, want, params, dtype):
    x, saliency = given["x"].to(dtype), given["saliency"].to(dtype)
    got = Scope(alpha=params["alpha"]).reduce(0, plain(x), {TowerAttention(-2): saliency}, [params["T"]] * len(x))
    assert_same("kept", got.anchor, want["keep"])


def slow(x, saliency, keep):
    unit = torch.nn.functional.normalize(x, dim=1)
    cosine, cover, chosen = unit @ unit.T, torch.zeros(len(x), dtype=x.dtype), []
    while len(chosen) < keep:
        score = (cosine - cover[:, None]).clamp(min=0).sum(0) * saliency
        score[chosen] = -1
        chosen.append(int(score.argmax()))
        cover = torch.maximum(cover, cosine[:, chosen[-1]])
    return sorted(chosen)


def test_equals_the_definition_whatever_the_padding():
    tokens = batch([picture((1, 5, 6), 1, torch.float64), picture((1, 3, 3), 2, torch.float64)], 2)
    attention = torch.rand(2, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    attention[1, 9:] = torch.nan
    got = Scope().reduce(0, tokens, {TowerAttention(-2): attention}, [11, 4])
    assert got.anchor[0].tolist() == slow(tokens.features[0, :30], attention[0, :30], 11)
    assert got.anchor[1, :4].tolist() == slow(tokens.features[1, :9], attention[1, :9], 4)


def test_alpha_zero_ignores_attention():
    tokens = batch([picture((1, 4, 4), 1)])
    kept = [
        Scope(alpha=0).reduce(0, tokens, {TowerAttention(-2): a}, [5]).anchor.tolist()
        for a in (torch.ones(1, 16), torch.arange(16.0)[None])
    ]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("alpha", [-0.1, True, float("nan"), float("inf"), "1", None])
def test_bad_options(alpha):
    with pytest.raises(ValueError, match=r"alpha=.* is not a finite number >= 0"):
        Scope(alpha=alpha)
