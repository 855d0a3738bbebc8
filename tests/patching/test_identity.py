"""Invariants 1 and 6: a budget that asks for nothing changes nothing, and unpatch leaves nothing behind."""

from __future__ import annotations

import pytest
import torch

import vtc
from tests import zoo
from tests.support import PAIRS, SOME_PAIRS, STOPPING, engine, generate, logits
from vtc.engine.kv_cache import RowCacheLayer
from vtc.patching.api import patch_of


@pytest.mark.parametrize("budget", [1.0, 10**9])
@pytest.mark.parametrize("family", zoo.NAMES)
def test_a_budget_of_all_tokens_is_bit_equal(family, budget, model_of):
    model = model_of(family)
    prompt = zoo.batch([zoo.prompt(model, n, seed=n) for n in (1, 2)])
    plain = logits(model, prompt)
    vtc.patch(model, "divprune", budget=budget)
    assert torch.equal(logits(model, prompt), plain)


@pytest.mark.parametrize(("family", "method"), [p for p in PAIRS if p.values[1] not in STOPPING])
def test_the_machinery_itself_is_bit_equal(family, method, model_of):
    """The bypass is off: rows are gathered, the cache stores rows, masks are cut – and nothing may differ."""
    model = model_of(family)
    prompt = zoo.batch([zoo.prompt(model, n, seed=n) for n in (1, 2)])
    plain = generate(model, prompt)
    vtc.patch(model, method, budget=1.0)
    engine(model).bypass = False
    ours = generate(model, prompt)
    layers = ours.past_key_values.layers
    assert any(isinstance(layer, RowCacheLayer) for layer in layers), "the machinery did not run"
    for step, (got, want) in enumerate(zip(ours.logits, plain.logits, strict=True)):
        assert torch.equal(got, want), f"step {step}"


@pytest.mark.parametrize(("family", "method"), SOME_PAIRS)
def test_unpatch_restores_everything(family, method, model_of):
    model = model_of(family)
    prompt = zoo.prompt(model, 2)
    plain = logits(model, prompt)
    logits(model, prompt, output_hidden_states=True)  # transformers installs capture hooks of its own, once
    before = _inventory(model)
    vtc.patch(model, method, budget=0.4)
    assert not torch.equal(logits(model, prompt), plain), "the patch did nothing, so undoing it proves nothing"
    assert _inventory(model) != before
    vtc.unpatch(model)
    assert _inventory(model) == before
    assert torch.equal(logits(model, prompt), plain)
    assert patch_of(model) is None


def _inventory(model) -> dict:
    """Everything a patch could leave on a model: hooks, attributes, types, configs, parameter names."""
    modules = {}
    for name, module in model.named_modules():
        hooks = [len(module._forward_hooks), len(module._forward_pre_hooks)]
        config = getattr(module, "config", None)
        modules[name] = (type(module), sorted(module.__dict__), hooks, id(config), str(config))
    return {"modules": modules, "keys": list(model.state_dict())}


def test_a_failing_patch_leaves_the_model_and_the_older_patch_alone(model_of):
    model = model_of("perception_lm")
    before = _inventory(model)
    with pytest.raises(vtc.errors.UnsupportedModel):
        vtc.patch(model, "visionzip")
    assert _inventory(model) == before
    vtc.patch(model, "random", budget=0.5)
    with pytest.raises(vtc.errors.UnsupportedModel):
        vtc.patch(model, "visionzip")
    assert patch_of(model).method.name == "random"


def test_patching_again_replaces_and_nesting_restores(model_of):
    model = model_of("llava")
    before = _inventory(model)
    assert vtc.patch(model, "random", budget=0.5) is model
    vtc.patch(model, "grid", budget=9)
    assert patch_of(model).method.name == "grid"
    with vtc.patched(model, "divprune", budget=4):
        assert patch_of(model).method.name == "divprune"
        with vtc.patched(model, "pool", budget=2):
            assert patch_of(model).method.name == "pool"
        assert patch_of(model).method.name == "divprune"
    assert (patch_of(model).method.name, patch_of(model).budget.value) == ("grid", 9)
    vtc.unpatch(vtc.unpatch(model))
    assert _inventory(model) == before


def test_an_exception_inside_a_block_still_undoes_the_patch(model_of):
    model = model_of("llava")
    with pytest.raises(ZeroDivisionError), vtc.patched(model, "grid", budget=0.5):
        1 / 0  # noqa: B018
    assert patch_of(model) is None


def test_a_method_that_raises_leaves_the_model_usable(model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    plain = logits(model, prompt)
    vtc.patch(model, "fastv", budget=1)
    with pytest.raises(vtc.errors.BudgetError) as caught:
        logits(model, prompt)
    assert caught.value.least == 10  # one of four layers keeps all 36, three keep 1
    vtc.patch(model, "fastv", budget=10)
    assert logits(model, prompt).shape == plain.shape
    vtc.unpatch(model)
    assert torch.equal(logits(model, prompt), plain)
