"""Greedy choices against their definitions, each score computed from scratch at each step in float64."""

import pytest
import torch

import vtc.kernels.greedy_diverse as module
from tests.tolerances import assert_same
from vtc.kernels.greedy_diverse import KINDS, greedy_diverse
from vtc.kernels.match import unit


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def score(kind, cosine, quality, chosen, j):
    """What choosing j is worth after ``chosen``."""
    n = len(cosine)
    if kind == "maxmin":
        others = chosen or [m for m in range(n) if m != j]
        return min((1 - cosine[j, m].item() for m in others), default=0.0)
    if kind == "coverage":
        cover = cosine[chosen].amax(0).clamp_min(0) if chosen else torch.zeros(n, dtype=torch.float64)
        return (quality[j] * (cosine[j] - cover).clamp_min(0).sum()).item()
    kernel = quality[:, None] * cosine * quality
    own = kernel[j, j]
    if not chosen:
        return own.item()
    known = torch.linalg.solve(kernel[chosen][:, chosen], kernel[chosen, j])
    return (own - kernel[j, chosen] @ known).item()


def definition(x, keep, kind, quality):
    direction = unit(x.double())
    cosine, chosen = direction @ direction.T, []
    for _ in range(keep):
        worth = [(-score(kind, cosine, quality.double(), chosen, j), j) for j in range(len(x)) if j not in chosen]
        chosen.append(min(worth)[1])
    return chosen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 8, 1), (30, 40, 12), (33, 16, 5), (65, 80, 9)], ids=str)
def test_kernel_equals_the_definition(kind, shape):
    tokens, width, keep = shape
    x, quality = draw(2, tokens, width), draw(2, tokens, seed=1).abs() + 0.1
    quality = None if kind == "maxmin" else quality
    got = greedy_diverse(x, keep, kind, torch.ones(2, tokens, dtype=torch.bool), quality)
    for i in range(2):
        given = torch.ones(tokens) if quality is None else quality[i]
        assert got[i].tolist() == definition(x[i], keep, kind, given)
    assert_same("again", greedy_diverse(x, keep, kind, torch.ones(2, tokens, dtype=torch.bool), quality), got)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_kernel_takes_every_dtype_and_stride(kind, dtype):
    x, allowed = draw(2, 40, 32).to(dtype), torch.ones(2, 40, dtype=torch.bool)
    want = greedy_diverse(x.float(), 8, kind, allowed)
    assert_same("narrow", greedy_diverse(x, 8, kind, allowed), want)
    assert_same("columns first", greedy_diverse(x.mT.contiguous().mT, 8, kind, allowed[:, :1].expand(-1, 40)), want)


@pytest.mark.parametrize("kind", KINDS)
def test_kernel_takes_each_token_once_and_nan_last(kind):
    x, allowed = draw(1, 20, 4), torch.ones(1, 20, dtype=torch.bool)
    x[0, 9], x[0, 5], x[0, 12] = x[0, 2], torch.nan, 0
    allowed[0, 17:] = False
    got = greedy_diverse(x, 20, kind, allowed)[0].tolist()
    assert sorted(got[:17]) == list(range(17)) and got[16] == 5
    assert got[17:] == [-1, -1, -1]


@pytest.mark.parametrize("kind", KINDS)
def test_kernel_ties_go_to_the_lower_index(kind):
    x = torch.eye(4).repeat(2, 1)[None]  # two of each direction
    got = greedy_diverse(x, 6, kind, torch.ones(1, 8, dtype=torch.bool))[0].tolist()
    assert got == ([0, 1, 2, 3, 4, 5] if kind != "maxmin" else got)
    assert sorted(j % 4 for j in got[:4]) == [0, 1, 2, 3]
    assert got[4:] == sorted(set(range(8)) - set(got[:4]))[:2]


@pytest.mark.parametrize("kind", KINDS)
def test_kernel_takes_equal_tokens_in_order_wherever_they_stand(kind):
    x, copies = draw(1, 131, 33), torch.tensor([0, 1, 37, 66, 94, 129, 130])
    x[0, copies] = x[0, 60].clone()
    got = greedy_diverse(x, 131 if kind == "maxmin" else 40, kind, torch.ones(1, 131, dtype=torch.bool))[0].tolist()
    order = [j for j in got if j in {60, *copies.tolist()}]
    assert order and order == sorted(order)


@pytest.mark.parametrize("kind", KINDS)
def test_kernel_chooses_alike_alone_padded_and_among_others(kind):
    x, quality = draw(3, 61, 40), draw(3, 61, seed=1).abs()
    allowed = torch.ones(3, 61, dtype=torch.bool)
    x[1, 50:], allowed[1, 50:] = torch.nan, False
    given = None if kind == "maxmin" else quality
    together = greedy_diverse(x, 30, kind, allowed, given)
    alone = greedy_diverse(x[1:2, :50], 30, kind, allowed[1:2, :50], None if given is None else given[1:2, :50])
    assert_same("picture 1", together[1:2], alone)


def coverage_from_scratch(x, keep, allowed, quality):
    """All gains of one picture again at every step, of cosines in 2^-30ths: float64 sums them exactly."""
    direction = unit(x).nan_to_num(0)
    cosine = (direction @ (direction.T * 2.0**30)).round().double()[allowed]
    cover, chosen = torch.zeros(len(cosine), 1, dtype=torch.float64), []
    last = torch.where(allowed, torch.where(unit(x).isfinite().all(1), 0.0, -2.0), -torch.inf)
    for _ in range(keep):
        score = ((cosine - cover).clamp_min(0).sum(0) * quality).where(last == 0, last.double())
        top = int(score.argmax())
        chosen.append(top if score[top] > -torch.inf else -1)
        cover, last[top] = torch.maximum(cover, cosine[:, top : top + 1]), -torch.inf
    return chosen


@pytest.mark.parametrize("limit, block", [(4096, 1 << 20), (20, 1 << 20), (20, 500)])
def test_kernel_coverage_equals_gains_from_scratch(limit, block, monkeypatch):
    monkeypatch.setattr(module, "LIMIT", limit)
    monkeypatch.setattr(module, "BLOCK", block)
    x, quality = draw(3, 70, 24), (draw(3, 70, seed=1).abs() * 2).round() / 2  # ties, and tokens worth nothing
    allowed = draw(3, 70, seed=2) < 1
    x[0, 30:50], x[1, 7], x[2, 11] = x[0, 5:25].clone(), torch.nan, 0
    got = greedy_diverse(x, 45, "coverage", allowed, quality)
    for i in range(3):
        assert got[i].tolist() == coverage_from_scratch(x[i], 45, allowed[i], quality[i].double())


@pytest.mark.parametrize("kind", ["dpp", "coverage"])
def test_kernel_takes_tokens_without_a_quality_last(kind):
    quality = draw(1, 9, seed=1).abs() + 0.1
    quality[0, 3], quality[0, 6] = torch.nan, torch.inf
    got = greedy_diverse(draw(1, 9, 12), 9, kind, torch.ones(1, 9, dtype=torch.bool), quality)[0].tolist()
    assert sorted(got) == list(range(9)) and got[7:] == [3, 6]


@pytest.mark.parametrize("kind", KINDS)
def test_above_the_limit_the_result_is_the_same(kind, monkeypatch):
    x, allowed = draw(2, 50, 24), torch.ones(2, 50, dtype=torch.bool)
    allowed[1, 40:], x[:, 30:40] = False, x[:, 3:13].clone()
    want = greedy_diverse(x, 20, kind, allowed)
    monkeypatch.setattr(module, "LIMIT", 20)
    assert_same("order", greedy_diverse(x, 20, kind, allowed), want)


@pytest.mark.parametrize("kind", KINDS)
def test_kernel_opcheck(kind):
    quality = None if kind == "maxmin" else draw(2, 9, seed=1).abs()
    allowed = torch.ones(2, 9, dtype=torch.bool)
    torch.library.opcheck(torch.ops.vtc.greedy_diverse.default, (draw(2, 9, 5), allowed, quality, 4, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 5, 3), (2, 0, 3), (0, 5, 3)])
def test_nothing_to_keep(kind, shape):
    assert greedy_diverse(draw(*shape), 0, kind, torch.ones(shape[:2], dtype=torch.bool)).shape == (shape[0], 0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "best"}, "kind='best' is not one of maxmin, dpp, coverage"),
        ({"quality": torch.ones(1, 5)}, "maxmin takes no quality"),
        ({"keep": 6}, "keep=6 of 5 tokens; give 0 to 5"),
    ],
)
def test_refusals(change, message):
    given = {"x": draw(1, 5, 3), "keep": 2, "kind": "maxmin", "allowed": torch.ones(1, 5, dtype=torch.bool)}
    with pytest.raises(ValueError, match=message):
        greedy_diverse(**(given | change))


def test_two_that_are_each_others_nearest_tie():
    """The two loneliest tokens may be each other's nearest: then the lower index is first, wherever products round."""
    from vtc.kernels.greedy_diverse import _mutual

    nearest, cosine = torch.tensor([[1, 0, 1, -1]]), torch.tensor([[0.5, 0.5 + 1e-7, 0.4, -1.0]])
    got = _mutual(nearest, cosine)
    assert got[0, 0] == got[0, 1] == cosine[0, 1]
    assert got[0, 2:].tolist() == cosine[0, 2:].tolist()
