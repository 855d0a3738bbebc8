import math

import pytest
import torch

from tests.golden import cases
from tests.pictures import batch, picture, without_grid
from tests.tolerances import assert_close, assert_same
from vtc.errors import UnsupportedModel
from vtc.methods.hiprune import HiPrune
from vtc.models import family_of
from vtc.signals.tower_attention import TowerAttention, received_in_tower


@pytest.mark.parametrize(("given", "want", "params"), cases("hiprune"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_authors(given, want, params, dtype):
    """Attention received from all rows, the CLS token's included; its column is cut away."""
    side = math.isqrt(params["n"])
    tokens = batch([picture((1, side, side), 1, dtype)])
    method, seen = HiPrune(alpha=params["alpha"]), {}
    for signal, name in zip(method.signals(0), ("shallow", "deep"), strict=True):
        q, k = (given[f"{which}_{name}"].to(dtype) for which in "qk")
        seen[signal] = received_in_tower(q, k, None, 0, q.shape[3] ** -0.5)[:, 1:]
        assert_close(name, seen[signal] / q.shape[1], want[f"{name}_score"])
    got = method.reduce(0, tokens, seen, [params["retention"]])
    assert_same("kept", got.anchor, want["keep"])


def kept(method, tokens, middle, deep, keep):
    return method.reduce(0, tokens, dict(zip(method.signals(0), (middle, deep), strict=True)), keep).anchor


def test_an_anchor_brings_its_surroundings():
    tokens = batch([picture((1, 5, 5), 1), picture((1, 3, 4), 2)], 1)
    middle = torch.zeros(2, 26)
    middle[0, 12] = middle[1, 5] = 1
    deep = torch.linspace(1, 0, 26).expand(2, -1)
    got = kept(HiPrune(alpha=0.8), tokens, middle, deep, [7, 6])
    assert got.tolist() == [[0, 1, 7, 11, 12, 13, 17], [0, 1, 4, 5, 6, 9, -1]]


def test_every_frame_has_its_own_width():
    tokens = batch([picture((1, 2, 3), 1)])
    tokens.grid[0] = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 1, 0], [1, 2, 0], [1, 3, 0]])
    middle = torch.zeros(1, 6)
    middle[0, 4] = 1
    assert kept(HiPrune(alpha=1), tokens, middle, torch.zeros(1, 6), [3]).tolist() == [[3, 4, 5]]


def test_more_surroundings_than_budget():
    tokens = batch([picture((1, 5, 5), 1)])
    middle = torch.zeros(1, 25)
    middle[0, 12] = 1
    assert kept(HiPrune(alpha=1), tokens, middle, torch.arange(25.0)[None], [3]).tolist() == [[12, 13, 17]]


def test_without_a_grid_it_raises():
    tokens = without_grid(batch([picture((1, 4, 4), 1)]))
    with pytest.raises(UnsupportedModel, match="use a method that needs no grid"):
        kept(HiPrune(), tokens, torch.ones(1, 16), torch.ones(1, 16), [5])


def test_signals_are_means_over_all_rows():
    assert HiPrune().signals(0) == (TowerAttention(1 / 3, rows="all"), TowerAttention(-2, rows="all"))


@pytest.mark.parametrize("alpha", [-0.1, 1.1, True, float("nan"), "0.1", None])
def test_bad_options(alpha):
    with pytest.raises(ValueError, match=r"alpha=.* is not a share in \[0, 1\]"):
        HiPrune(alpha=alpha)


@pytest.mark.parametrize("layer", [1.0, -0.5, True, float("nan"), "9", None])
def test_bad_layers(layer):
    with pytest.raises(ValueError, match=r"layer .* is not a tower layer; give an int"):
        HiPrune(layer=layer)


@pytest.mark.parametrize(("depth", "found"), [(24, 8), (27, 9), (3, 1), (1, 0), (32, 11)])
def test_a_fraction_of_the_towers_depth(depth, found, model_of):
    family = family_of(model_of("llava"))
    layers = [torch.nn.Identity() for _ in range(depth)]
    family._tower_attention = {"image": layers}
    assert family.tower_attention(8 / 24) is layers[found]
    assert family.tower_attention(-1) is layers[-1]
