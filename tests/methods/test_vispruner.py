import pytest
import torch

from tests.golden import cases
from tests.pictures import batch, picture, plain, reduce
from tests.tolerances import assert_same
from vtc.methods.vispruner import VisPruner
from vtc.signals.tower_attention import TowerAttention


@pytest.mark.parametrize(("given", "want", "params"), cases("vispruner"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_authors(given, want, params, dtype):
    tokens = plain(given["x"].to(dtype))
    attention = given["attn"].to(dtype).sum(1)
    method = VisPruner(important=params["important_ratio"])
    got = method.reduce(0, tokens, {TowerAttention(-2): attention}, [params["T"]] * len(attention))
    assert_same("kept", got.anchor, want["keep"])


def test_all_important_is_top_k_by_attention():
    tokens = batch([picture((1, 4, 4), 1)])
    attention = torch.randn(1, 16, generator=torch.Generator().manual_seed(1)).exp()
    got = VisPruner(important=1).reduce(0, tokens, {TowerAttention(-2): attention}, [5])
    assert got.anchor[0].tolist() == sorted(attention[0].argsort(descending=True)[:5].tolist())


def slow(features, attention, keep, important):
    """The definition in lists, for one picture."""
    order = sorted(range(len(features)), key=lambda n: -float(attention[n]))
    first, rest = order[: int(keep * important)], order[int(keep * important) :]
    unit = torch.nn.functional.normalize(features, dim=1)
    wanted = keep - len(first)
    while len(rest) > wanted:
        a, b = rest[::2], rest[1::2]
        a = sorted(a, key=lambda n: -float((unit[b] @ unit[n]).max()))
        rest = a[min(8, len(rest) - wanted, len(rest) // 2) :] + b
    return sorted(first + rest)


@pytest.mark.parametrize("keep", [1, 2, 7, 20, 33])
def test_equals_the_definition(keep):
    tokens = batch([picture((1, 5, 7), 1, torch.float64), picture((1, 3, 3), 2, torch.float64)])
    attention = torch.randn(2, 35, generator=torch.Generator().manual_seed(1)).exp()
    wanted = [keep, min(keep, 4)]
    got = VisPruner().reduce(0, tokens, {TowerAttention(-2): attention}, wanted)
    for i, (n, k) in enumerate(zip(tokens.count, wanted, strict=True)):
        assert got.anchor[i, :k].tolist() == slow(tokens.features[i, :n], attention[i, :n], k, 0.5)


def test_doubles_go_before_the_rest():
    """Attention is level: of 16 tokens, 8 are copies of others, one of each two goes."""
    tokens = batch([picture((1, 4, 4), 1)])
    tokens.features[0, 1::2] = tokens.features[0, 0::2]
    got = VisPruner(important=0).reduce(0, tokens, {TowerAttention(-2): torch.ones(1, 16)}, [8])
    assert sorted((got.anchor[0] // 2).tolist()) == list(range(8))


def test_a_large_picture_takes_no_more_rounds(monkeypatch):
    from vtc.methods import vispruner

    rounds = []
    real = vispruner.bipartite_round
    monkeypatch.setattr(vispruner, "bipartite_round", lambda *given: rounds.append(0) or real(*given))
    reduce(VisPruner(), batch([picture((1, 40, 40), 1)]), [100])
    assert len(rounds) <= vispruner.ROUNDS


@pytest.mark.parametrize("share", [-0.1, 1.1, True, float("nan"), "0.5", None])
def test_bad_options(share):
    with pytest.raises(ValueError, match=r"important=.* is not a share in \[0, 1\]"):
        VisPruner(important=share)
