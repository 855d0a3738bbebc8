"""A plan against one candidate for all layers, on prompts that played no part."""

import dataclasses

import pytest
import torch

import vtc
from tests import zoo
from tests.weights.runs import logits
from vtc.weights.formats import hf
from vtc.weights.planning.check import check, rival
from vtc.weights.planning.plan import Plan, Probe, Trial, allocate, trials
from vtc.weights.planning.report import table

CANDIDATES = tuple(f"gptq:bits={bits}:group=8" for bits in (2, 4, 8))


@pytest.fixture(scope="module")
def setting():
    model = zoo.build("llava")
    prompts = [zoo.prompt(model, seed=n) for n in range(6)]
    tried = trials(model, prompts[:2], prompts[2:4], CANDIDATES, progress=False)
    return model, prompts, tried


def test_both_are_measured_and_the_model_is_left_as_it_was(setting):
    model, prompts, tried = setting
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan = allocate(tried, limit=sum(t.bytes for t in tried if t.passes == CANDIDATES[1]))
    found = check(model, plan, prompts[:2], prompts[4:])
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert hf.config_of(model) is None
    assert (found.passes, found.prompts) == (CANDIDATES[1], 2)
    probe, other = Probe(model, prompts[4:]), zoo.build("llava")
    vtc.compress(other, CANDIDATES[1], prompts[:2], progress=False)
    assert found.uniform == pytest.approx(probe.divergence(other), rel=1e-4)
    assert str(found) in table(plan, found)


def test_what_an_older_structural_pass_left_is_still_told(setting):
    _, prompts, _ = setting
    model = vtc.compress(zoo.build("llava"), "neurons:share=0.5:score=norm", prompts[:2], progress=False)
    before, older = logits(model), hf.config_of(model)
    plan = allocate(trials(model, prompts[:2], prompts[2:4], CANDIDATES[:2], progress=False), bits=7)
    check(model, plan, prompts[:2], prompts[4:])
    found = hf.config_of(model)
    assert (found.layers, found.manifest) == (older.layers, older.manifest)
    assert torch.equal(logits(model), before)
    vtc.compress(model, plan.recipe(), prompts[:2], progress=False)
    found = hf.config_of(model)
    assert found.manifest["before"] == older.manifest
    assert all("linear" in found.layers[name] for name in older.layers)


def test_a_plan_that_loses_says_so(setting):
    model, prompts, tried = setting
    least = allocate(tried, limit=sum(t.bytes for t in tried if t.passes == CANDIDATES[0]))
    bad = dataclasses.replace(least, limit=1e9)  # two bits where eight were allowed
    found = check(model, bad, prompts[:2], prompts[4:])
    assert found.passes == CANDIDATES[2] and not found.won and "does not pay" in str(found)
    assert found.plan > found.uniform > 0


def test_rivals_keep_to_the_limit():
    made = [Trial("a", f"p{n}", 8, cost, 1, 1.0, lost) for n, (cost, lost) in enumerate([(1, 5.0), (2, 1.0), (3, 2.0)])]
    for limit, wanted in ((0.5, None), (1, "p0"), (2.5, "p1"), (9, "p1")):
        assert rival(Plan({"a": "p0"}, tuple(made), "bytes", limit)) == wanted
