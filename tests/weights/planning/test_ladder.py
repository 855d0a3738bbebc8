"""Plans for several sizes, and the one that fits; joint candidates of bits and sparsity."""

import pytest

import vtc
from tests import zoo
from vtc.errors import WeightsError
from vtc.weights.fitting.masks import highest
from vtc.weights.formats import hf
from vtc.weights.planning.ladder import ladder, pick
from vtc.weights.planning.plan import Trial, allocate, trials

JOINT = ("gptq:bits=3:group=32", "gptq:bits=8:group=32", "sparsegpt:pattern=2/4:bits=8:group=32")


def made():
    """Two layers of 64 weights, each as 2, 4 or 8 bits."""
    return [
        Trial(layer, f"rtn:bits={bits}", 64, 8 * bits, 1, 1 / bits, weight / bits)
        for layer, weight in (("a", 1.0), ("b", 10.0))
        for bits in (2, 4, 8)
    ]


def test_the_best_that_fits_is_picked():
    plans = ladder(made(), [8, 2, 4])
    assert [plan.bytes for plan in plans] == [32, 64, 128]
    assert [plan.damage for plan in plans] == sorted((plan.damage for plan in plans), reverse=True)
    for free, wanted in ((32, 32), (63.9, 32), (64, 64), (127, 64), (1e12, 128)):
        assert pick(plans, free).bytes == wanted
    assert pick(plans, 64).recipe("rtn").by_layer


def test_no_plan_that_fits():
    plans = ladder(made(), [2, 4])
    for free in (31, 0, -5):
        with pytest.raises(WeightsError, match="smallest plan takes 32"):
            pick(plans, free)
    with pytest.raises(WeightsError, match="no plan"):
        pick([], 100)
    with pytest.raises(WeightsError, match="needs sizes"):
        ladder(made(), [])
    with pytest.raises(WeightsError, match="from"):
        ladder(made(), [1, 4])


def test_bits_and_sparsity_are_allocated_together():
    """Edge-LLM's layer-wise compression: a pair for each layer. A layer that is sparse already loses nothing by it."""
    model = zoo.build("llava", layers=2)
    for layer in model.model.language_model.layers:
        weight = layer.mlp.up_proj.weight.data
        weight.mul_(highest(weight.abs(), 0.5, "2:4"))
    calibration = [zoo.prompt(model, pictures=1)]
    mlp = {"passes": ["rtn"], "skip": ["self_attn"]}
    tried = trials(model, calibration, [zoo.prompt(model, seed=5)], JOINT, mlp, progress=False)
    layers = {t.layer for t in tried}
    limit = sum(t.bytes for t in tried if t.passes == (JOINT[2] if t.layer.endswith("up_proj") else JOINT[1]))
    plan = allocate(tried, limit=limit, by="error")
    assert {layer: plan.chosen[layer] for layer in layers} == {
        layer: JOINT[2] if layer.endswith("up_proj") else JOINT[1] for layer in layers
    }
    vtc.compress(model, plan.recipe(mlp), calibration, progress=False)
    assert sum(told["bytes"] for told in hf.config_of(model).manifest["layers"].values()) == plan.bytes <= limit
