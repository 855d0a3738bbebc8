import math

import pytest
import torch

from tests.golden import cases
from tests.pictures import batch, picture, reduce, without_grid
from tests.tolerances import assert_close, assert_same
from vtc.budget.schedule import solve
from vtc.errors import UnsupportedModel
from vtc.kernels.merge import merge
from vtc.methods.base import Stage
from vtc.methods.vscan import VScan, distinct, windows
from vtc.signals.text_attention import TextAttention
from vtc.signals.tower_attention import TowerAttention
from vtc.tokens import Budget


@pytest.mark.parametrize(("given", "want", "params"), cases("vscan"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_authors(given, want, params, dtype):
    """Where the budget is the number of tokens they return (theirs loses what does not fill the windows alike)."""
    side = math.isqrt(params["n"])
    tokens = batch([picture((1, side, side), 1, dtype)])
    tokens.features = given["x"].to(dtype)
    method = VScan(window=params["window"])
    seen = dict(zip(method.signals(0), (given[n].to(dtype).sum(1) for n in ("shallow", "deep")), strict=True))
    keep = want["keep"].shape[1]
    got = method.reduce(0, tokens, seen, [keep])
    assert_same("kept", got.anchor, want["keep"])
    assert_close("tokens", merge(tokens.features, got.slot, got.weight, tokens.size, keep), want["tokens"])


def kept(method, tokens, shallow, deep, keep):
    seen = dict(zip(method.signals(0), (shallow, deep), strict=True))
    return method.reduce(0, tokens, seen, keep).anchor


def test_half_are_the_best_of_their_window():
    tokens = batch([picture((1, 4, 4), 1), picture((1, 2, 5), 2)])
    shallow = torch.zeros(2, 16)
    shallow[0, [5, 6, 9, 10]] = 1  # the inner corner of each window
    shallow[1, [0, 3, 9]] = 1  # windows of two, two and one column
    deep = torch.linspace(1, 0, 16).expand(2, -1)
    got = kept(VScan(window=2), tokens, shallow, deep, [8, 6])
    assert got.tolist() == [[0, 1, 2, 3, 5, 6, 9, 10], [0, 1, 2, 3, 4, 9, -1, -1]]


def test_too_few_for_the_windows_are_all_global():
    tokens = batch([picture((1, 4, 4), 1)])
    assert kept(VScan(window=1), tokens, torch.ones(1, 16), torch.arange(16.0)[None], [3]).tolist() == [[13, 14, 15]]


def test_windows_are_squares_of_one_frame():
    tokens = batch([picture((2, 3, 5), 1), picture((1, 2, 2), 2), picture((1, 0, 0), 3)])
    window = windows(tokens, 2)
    assert distinct(window, tokens).tolist() == [12, 1, 1]
    a, b = ((window[0, n] == window[0, 0]).item() for n in (6, 15))
    assert a and not b


def test_the_second_stage_is_what_the_last_row_attends_to():
    tokens = batch([picture((1, 4, 4), 1)])
    score = torch.rand(1, 16, generator=torch.Generator().manual_seed(1))
    got = VScan().reduce(1, tokens, {TextAttention("next"): score}, [4])
    assert got.anchor[0].tolist() == sorted(score[0].argsort(descending=True)[:4].tolist()) and not got.merges


def test_stages():
    method = VScan()
    assert method.stages() == (Stage(0), Stage(0.5, factor=1 / 3))
    assert [method.stages()[1].index(depth) for depth in (32, 28)] == [16, 14]
    budgets = [solve(576, Budget(n), (0, 16), (1, 1), 32, factors=(1, 1 / 3)) for n in (64, 128, 192)]
    assert budgets == [(96, 32), (192, 64), (288, 96)]  # the paper's
    assert method.signals(0) == (TowerAttention(5 / 24), TowerAttention(-2))
    assert method.signals(1) == (TextAttention("next"),)


def test_without_a_grid_it_raises():
    with pytest.raises(UnsupportedModel, match="use a method that needs no grid"):
        reduce(VScan(), without_grid(batch([picture((1, 4, 4), 1)])), [5])


@pytest.mark.parametrize("window", [0, -1, 2.0, True, "6", None])
def test_bad_windows(window):
    with pytest.raises(ValueError, match=r"window=.* is not an int >= 1"):
        VScan(window=window)


@pytest.mark.parametrize("layer", [0, 0.0, 1.0, -1, True, "2", None])
def test_bad_layers(layer):
    with pytest.raises(ValueError, match=r"layer.*give an int"):
        VScan(layer=layer)
