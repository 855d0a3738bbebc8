"""Candidates tried layer by layer, and the plan made of them."""

import pytest
import torch
from torch import nn

import vtc
from tests import zoo
from vtc.errors import WeightsError
from vtc.weights.formats import hf
from vtc.weights.planning.plan import Probe, Trial, allocate, trials
from vtc.weights.planning.report import plot, table
from vtc.weights.recipe import Recipe

CANDIDATES = ("gptq:bits=2:group=8", "gptq:bits=4:group=8", "rtn:bits=4:group=8", "gptq:bits=8:group=8")


@pytest.fixture(scope="module")
def tried():
    model = zoo.build("llava")
    calibration = [zoo.prompt(model, pictures=n) for n in (1, 2)]
    heldout = [zoo.prompt(model, pictures=1, seed=5)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = trials(model, calibration, heldout, CANDIDATES, timed=True, progress=False)
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert not [m for m in model.modules() if "forward" in m.__dict__ or m._forward_pre_hooks]
    return found, calibration


def test_every_layer_and_candidate_is_there(tried):
    found, _ = tried
    assert len(found) == 4 * 7 * len(CANDIDATES)
    by = {(t.layer, t.passes): t for t in found}
    layers = {t.layer for t in found}
    for layer in layers:
        two, four, eight = (by[layer, CANDIDATES[n]] for n in (0, 1, 3))
        assert two.bytes < four.bytes < eight.bytes and two.error > four.error > eight.error
        assert two.divergence > four.divergence > eight.divergence >= 0
    assert all(t.ms > 0 for t in found)


def test_layers_outside_a_plan_stay_as_they_are(tried, model):
    found, calibration = tried
    recipe = allocate(found, bits=6.5).recipe({"passes": ["rtn:bits=8:group=8"], "include": ["decoder", "lm_head"]})
    vtc.compress(model, recipe, calibration, progress=False)
    assert type(model.lm_head) is nn.Linear
    assert sum(told["bytes"] for told in hf.config_of(model).manifest["layers"].values()) == allocate(found, 6.5).bytes
    assert Recipe.of(recipe.written()) == recipe
    with pytest.raises(WeightsError, match="gptq needs calibration"):
        vtc.compress(zoo.build("llava"), recipe, progress=False)
    with pytest.raises(WeightsError, match="prune first"):
        allocate(found, bits=6.5).recipe("neurons:share=0.5|rtn")


@pytest.mark.parametrize("by", ["divergence", "error"])
def test_a_plan_keeps_to_its_bits_and_is_carried_out(tried, by):
    found, calibration = tried
    plan = allocate(found, bits=6.5, by=by)
    assert plan.bits <= 6.5 and len(set(plan.chosen.values())) > 1
    model = zoo.build("llava")
    vtc.compress(model, plan.recipe(), calibration, progress=False)
    stored = hf.config_of(model).manifest["layers"]
    assert sum(told["bytes"] for told in stored.values()) == plan.bytes


def test_plans_by_flops_and_milliseconds(tried):
    found, _ = tried
    assert allocate(found, limit=sum({t.layer: t.flops for t in found}.values()), cost="flops").chosen
    slow = sum(max(t.ms for t in found if t.layer == layer) for layer in {t.layer for t in found})
    assert allocate(found, limit=slow, cost="ms").chosen


def test_a_plan_to_read(tried, tmp_path):
    found, _ = tried
    plan = allocate(found, bits=7.0)
    text = table(plan)
    assert text.count("**") == 2 * len(plan.chosen) and "7.0" not in text.split("bits")[0][:1]
    plot(plan, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").stat().st_size > 10_000


def test_what_cannot_be_planned(tried):
    found, calibration = tried
    with pytest.raises(WeightsError, match="from"):
        allocate(found, bits=1.0)
    with pytest.raises(WeightsError, match="either bits"):
        allocate(found)
    with pytest.raises(WeightsError, match="either bits"):
        allocate(found, bits=4, cost="ms")
    with pytest.raises(WeightsError, match="cost is one of"):
        allocate(found, bits=4, cost="euros")
    model = zoo.build("llava")
    with pytest.raises(WeightsError, match="two candidates"):
        trials(model, calibration, calibration, ("gptq",), progress=False)
    with pytest.raises(WeightsError, match="empty"):
        trials(model, calibration, [], progress=False)
    with pytest.raises(WeightsError, match="by_layer names"):
        recipe = allocate([Trial("no.such", c, 8, n + 1, 1, 1.0, 1.0) for n, c in enumerate("ab")], bits=8)
        vtc.compress(
            model, {"passes": ["rtn"], "by_layer": {layer: ["rtn"] for layer in recipe.chosen}}, progress=False
        )


def test_a_probe_sees_what_a_plan_changed(tried):
    found, calibration = tried
    model = zoo.build("llava")
    probe = Probe(model, calibration)
    assert probe.divergence(model) == pytest.approx(0, abs=1e-6)
    vtc.compress(model, allocate(found, bits=6.5).recipe(), calibration, progress=False)
    assert probe.divergence(model) > 1e-6 and len(probe.each(model)) == 2
