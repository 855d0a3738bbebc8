"""Vision tokens that rest in some decoder layers: equal to a slow reference that masks them and puts them back."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from transformers import DynamicCache

import vtc
from tests import zoo
from tests.reference import (
    before_norm,
    cuts_of,
    dropped_rows,
    equals_the_whole,
    log_sizes,
    longer,
    masked,
    merged_input,
    restored,
)
from tests.support import KINDS, engine, exact_dtype, generate, logits
from tests.tolerances import assert_close
from vtc.errors import BudgetError, UnsupportedModel
from vtc.methods import Act, Combined, DivPrune, FastV, HiRED
from vtc.methods._spelling import build

LAYERS = 4  # of the models here
SPECS = (
    "divprune:rest=[1,3]+share/fastv:layer=3",
    "perceiver:rest=[0,1]",  # tokens enter late
    "divprune:rest=[0,2]+share",
    "divprune:rest=[1]",
    "pyramiddrop:layers=[1,3]:rest=[0,2]",
    "divprune+share/fastv:layer=3:rest=[1]",
)
BUDGET = {spec: 0.4 if spec.startswith("pyramiddrop") else 0.2 for spec in SPECS}  # that one cuts late
families = pytest.mark.parametrize("family", [f for f in KINDS if f != "paligemma"])  # it reads one forward as a prefix
each = pytest.mark.parametrize("spec", SPECS)


def equals_masked(model, method, budget, prompt) -> None:
    """The patched model gives what the unpatched one does whose rows are masked, merged and put back."""
    vtc.patch(model, method, budget)
    with before_norm(model) as seen:
        logits(model, prompt)
    gone, cuts, sizes = dropped_rows(engine(model)), cuts_of(engine(model)), log_sizes(engine(model))
    vtc.unpatch(model)
    resting = {layer: gone[layer] for layer in method.rest}
    assert all(gone[layer].sum() >= gone[max(cuts)].sum() > 0 for layer in method.rest)
    merged = partial(merged_input, model, cuts, method.share, deepstack=model.config.model_type == "qwen3_vl")
    with before_norm(model) as want, restored(model, resting), merged(), masked(model, gone, sizes):
        logits(model, prompt)
    there = ~gone[LAYERS - 1] & prompt["attention_mask"].bool()
    assert_close("rows that are left", seen[0][there], want[0][there])
    with before_norm(model) as control, merged(), masked(model, gone, sizes):
        logits(model, prompt)
    moved = (control[0] - seen[0])[there].abs().max()
    assert moved > 1e-4, "tokens that run give the same, so this proves little"


@each
@families
def test_resting_equals_masking_and_putting_back(family, spec, model_of):
    model, method = model_of(family, dtype=exact_dtype(family)), build(spec)
    prompt = zoo.batch([zoo.prompt(model, n, seed=n) for n in (1, 2)])
    equals_masked(model, method, BUDGET[spec], prompt)


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_with_little_text_and_many_tokens_beside_others(side, model_of):
    """Their fillers are vision rows, and not all of those are there any more."""
    model, method = model_of("llava", dtype=torch.float64), build("divprune:rest=[1]+share")
    few, many = zoo.prompt(model, 3, before=1, between=1, after=2), zoo.prompt(model, 1, seed=1, after=8)
    prompt = zoo.batch([few, many], side)
    vtc.patch(model, method, budget=0.3)
    logits(model, prompt)
    plan = engine(model).current.plans[1]
    assert plan.runs.valid is not None and torch.equal(plan.rows.rows.gather(1, plan.runs.inside), plan.runs.rows)
    equals_masked(model, method, 0.3, prompt)


@each
@families
def test_decoding_goes_on_as_the_whole_sequence(family, spec, model_of):
    method = replace(build(spec.replace("+share", "")), share=False)
    model = model_of(family, dtype=exact_dtype(family))
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, method, budget=BUDGET[spec])
    logits(model, prompt)
    gone = dropped_rows(engine(model))
    out = generate(model, prompt, tokens=6, suppress_tokens=list(vtc.models.family_of(model).token_ids.values()))
    vtc.unpatch(model)
    gone = longer(gone, out.sequences.shape[1] - 1)
    with restored(model, {layer: gone[layer] for layer in method.rest}), masked(model, gone):
        equals_the_whole(model, prompt, out)


@each
def test_what_rest_saves_is_spent_elsewhere_and_cache_and_report_show_it(spec, model_of):
    model, method = model_of("llava"), build(spec)
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, method, budget=BUDGET[spec])
    cache = DynamicCache(config=model.config.get_text_config())
    logits(model, prompt, past_key_values=cache, use_cache=True)
    (one,) = vtc.report(model).pictures
    words = prompt["input_ids"].shape[1] - one.tokens_in
    assert [layer.keys.shape[2] - words for layer in cache.layers] == one.tokens_by_layer
    assert [n for n, tokens in enumerate(one.tokens_by_layer) if tokens == 0] == list(method.rest)
    assert one.average <= BUDGET[spec] * one.tokens_in


def test_the_layers_that_run_get_the_tokens_that_rest_elsewhere(model_of):
    model = model_of("llava")
    kept = {}
    for rest in ((), (1, 2)):
        vtc.patch(model, "divprune", budget=0.25, rest=rest)
        logits(model, zoo.prompt(model, 1))
        (one,) = vtc.report(model).pictures
        kept[rest] = one.tokens_by_layer
    assert kept[1, 2] == [2 * kept[()][0], 0, 0, 2 * kept[()][0]]


def test_a_whole_budget_changes_nothing_and_one_below_is_met(model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    want = logits(model, prompt)
    vtc.patch(model, "divprune", budget=1.0, rest=(0, 1))
    assert torch.equal(logits(model, prompt), want)
    vtc.patch(model, "divprune", budget=0.95, rest=(0, 1))
    assert not torch.equal(logits(model, prompt), want)
    (one,) = vtc.report(model).pictures
    assert one.tokens_by_layer == [0, 0, one.tokens_in, one.tokens_in]


def test_what_rests_is_saved_with_the_method(model_of, tmp_path):
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "adaptive", budget=0.3, layer=2, rest=(1, 3))
    want = logits(model, prompt)
    vtc.save(model, tmp_path / "model")
    assert torch.equal(logits(vtc.load(tmp_path / "model").eval(), prompt), want)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_are_those_of_the_forward_with_and_without_replays(reentrant):
    def gradient(checkpointed: bool) -> dict:
        model = zoo.build("llava", dtype=torch.float64).train()
        vtc.patch(model, build(SPECS[1]), budget=0.2)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        prompt = zoo.prompt(model, 1)
        labels = prompt["input_ids"].clone()
        labels[:, :-3] = -100
        model(**prompt, labels=labels, use_cache=False).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    want, got = gradient(False), gradient(True)
    assert want.keys() == got.keys() and any("vtc_learned" in name for name in want)
    for name, grad in want.items():
        assert_close(name, got[name], grad)


@pytest.mark.parametrize("rest", [(1, 1), (2, 1), (-1,), (0.5,), (True,), 1, "12", None])
def test_layers_that_are_none_are_refused(rest):
    with pytest.raises(ValueError, match=r"rest=.* are not decoder layers in order; give some like"):
        DivPrune(rest=rest)


def test_what_cannot_rest_is_refused(model_of):
    model = model_of("llava")
    with pytest.raises(ValueError, match=r"the model has 4 decoder layers; the last is 3"):
        vtc.patch(model, "divprune", budget=0.5, rest=(1, 4))
    with pytest.raises(ValueError, match="is every decoder layer"):
        vtc.patch(model, "divprune", budget=0.5, rest=(0, 1, 2, 3))
    with pytest.raises(ValueError, match="layers to rest in"):
        HiRED(select=DivPrune(rest=(1,)))
    with pytest.raises(ValueError, match=r"by what layer 1 attends to, and its tokens rest there; leave 1 out"):
        vtc.patch(model, "fastv", budget=0.6, layer=2, rest=(1,))
    with pytest.raises(ValueError, match="all of its rows stay"):
        Act(rest=(1,))
    with pytest.raises(UnsupportedModel, match="recurrent"):
        vtc.patch(model_of("qwen3_5"), "divprune", budget=0.5, rest=(1,))
    vtc.patch(model, "perceiver", budget=0.4, latents=2, rest=(1,))
    with pytest.raises(BudgetError, match="2 latents"):
        logits(model, zoo.prompt(model, 1))
    assert Combined(methods=(DivPrune(rest=(1,)), FastV(rest=(3,)))).rest == (1, 3)
