"""Magnitude and Wanda: masks of the authors' code, patterns, bad options."""

from dataclasses import replace

import pytest
import torch

from tests.weights.golden import cases, output_error
from tests.weights.layers import layer
from vtc.errors import WeightsError
from vtc.weights.fitting.gram import Gram
from vtc.weights.passes import registry
from vtc.weights.passes.base import Candidate

WANDA = {"wanda_50": dict(sparsity=0.5), "wanda_2of4": dict(pattern="2:4"), "wanda_30": dict(sparsity=0.3)}


@pytest.mark.parametrize("case, inputs, wanted", cases("wanda", *WANDA))
def test_wanda_is_its_authors(case, inputs, wanted):
    weight, x = inputs["W"], inputs["X"]
    got = registry["wanda"](**WANDA[case["configuration"]]).fit(Candidate(weight, Gram.of(x)))
    assert torch.equal(~got.mask, wanted["pruned_mask"])
    assert torch.equal(got.approximation, wanted["W_hat"])
    assert output_error(weight, got.approximation, x) <= case["rel_output_error"] * 1.001


def test_magnitude_drops_the_smallest_of_each_row():
    got = registry["magnitude"](sparsity=0.25).fit(layer(out=3, width=8))
    weight = got.weight
    for row, mask in zip(weight.abs(), got.mask, strict=True):
        assert mask.sum() == 6 and row[~mask].max() < row[mask].min()
    assert torch.equal(got.approximation, weight * got.mask)


def test_inputs_matter_to_wanda_and_not_to_magnitude():
    given = layer()
    error = {name: registry[name](sparsity=0.5).fit(given).error for name in ("magnitude", "wanda", "sparsegpt")}
    assert error["sparsegpt"] < error["wanda"] < error["magnitude"]


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("pattern, n, m", [("2:4", 2, 4), ("1:3", 1, 3), ("5:8", 5, 8)])
def test_patterns(name, pattern, n, m):
    got = registry[name](pattern=pattern).fit(layer(out=5, width=24 * 12))
    assert ((got.approximation != 0).view(5, -1, m).sum(-1) == m - n).all()
    assert got.bytes < 4 * got.weight.numel() * (m - n) / m + got.weight.numel() / 2


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt"])
def test_a_second_pruning_goes_on_where_the_first_ended(name):
    once = registry[name](sparsity=0.3).fit(layer())
    twice = registry[name](sparsity=0.6).fit(once)
    assert not (twice.mask & ~once.mask).any() and twice.bytes < once.bytes


def test_then_rounding_keeps_the_mask():
    got = registry["gptq"](bits=4, group=32).fit(registry["wanda"](pattern="2:4").fit(layer()))
    assert not got.approximation[~got.mask].any() and got.bits <= 4


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize(
    "options",
    [
        dict(sparsity=0),
        dict(sparsity=1.0),
        dict(sparsity=float("nan")),
        dict(sparsity="half"),
        dict(pattern="4:2"),
        dict(pattern="half"),
        dict(pattern="0:4"),
        dict(pattern="dense"),
        dict(pattern=24),
        dict(pattern=""),
    ],
)
def test_absurd_options(name, options):
    with pytest.raises(WeightsError):
        registry[name](**options)


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt"])
def test_a_pattern_that_does_not_divide_the_inputs(name):
    with pytest.raises(WeightsError, match="multiple of 4 inputs and there are 30"):
        registry[name](pattern="2:4").fit(layer(width=30))


def test_a_dead_input_goes_first():
    given = layer(width=8)
    moment = given.gram.moment.clone()
    moment[5], moment[:, 5] = 0, 0
    got = registry["wanda"](sparsity=0.125).fit(replace(given, gram=replace(given.gram, moment=moment)))
    assert not got.mask[:, 5].any() and got.mask.sum() == 48 * 7
