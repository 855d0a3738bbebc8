"""What a method learns: owned by the patch, seen by the model, trained through any forward, gone after unpatch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper

import vtc
from tests import zoo
from tests.own import known
from tests.support import KINDS, engine, generate, logits
from tests.tolerances import assert_close
from tests.versions import skip_before
from vtc.errors import BudgetError, VTCError
from vtc.methods import registry
from vtc.patching.api import patch_of
from vtc.patching.patch import LEARNED

LEARNING = tuple(name for name, kind in known(registry).items() if kind.learns)
OTHER = {"perceiver": {"depth": 1}, "act_learned": {"width": 8}, "router": {"layer": 2}}  # not the defaults
each = pytest.mark.parametrize("method", LEARNING)


def stir(model) -> None:
    """Stand in for a training: every learned parameter moves, also those that start at zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.vtc_learned.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter))


def gradients(model, prompt: dict) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    labels = prompt["input_ids"].clone()
    labels[:, :-4] = -100
    model(**prompt, labels=labels, use_cache=False).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_exactly_those_that_say_so_learn(model_of):
    model = model_of("llava")
    assert [name for name, kind in known(registry).items() if kind().build(model) is not None] == list(LEARNING) != []


@each
def test_the_model_sees_what_is_learned_only_while_it_is_patched(method):
    model = zoo.build("llava", dtype=torch.float64)
    keys, modules = list(model.state_dict()), dict(model.named_modules())
    vtc.patch(model, method, budget=0.4)
    assert model.vtc_learned is patch_of(model).method.module
    added = [key for key in model.state_dict() if key not in keys]
    assert added and all(key.startswith(f"{LEARNED}.") for key in added)
    assert {p.dtype for p in model.vtc_learned.parameters()} == {torch.float64}
    assert {p.dtype for p in model.to(torch.bfloat16).vtc_learned.parameters()} == {torch.bfloat16}
    assert not model.vtc_learned.training and model.train().vtc_learned.training
    vtc.unpatch(model)
    assert list(model.state_dict()) == keys
    assert dict(model.named_modules()) == modules
    assert not hasattr(model, LEARNED)


@each
def test_an_equal_method_keeps_what_was_learned_and_another_one_starts_anew(method):
    model = zoo.build("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, method, budget=0.4)
    stir(model)
    learned, want = model.vtc_learned, logits(model, prompt)
    with vtc.patched(model, "random", budget=0.4):
        assert not hasattr(model, LEARNED)
    assert model.vtc_learned is learned and torch.equal(logits(model, prompt), want)
    vtc.patch(model, method, budget=0.3)
    assert model.vtc_learned is learned and not torch.equal(logits(model, prompt), want)
    patch_of(model).set_budget(0.4)
    assert torch.equal(logits(model, prompt), want)
    vtc.patch(model, method, budget=0.4, **OTHER[method])
    assert model.vtc_learned is not learned


@each
def test_a_method_of_another_model_brings_its_options_and_not_its_parameters(method):
    one, other = zoo.build("llava"), zoo.build("llava")
    vtc.patch(one, method, budget=0.4)
    vtc.patch(other, patch_of(one).method, budget=0.4)
    assert patch_of(one).method == patch_of(other).method
    assert one.vtc_learned is not other.vtc_learned


@each
@pytest.mark.parametrize("family", KINDS)
def test_gradients_reach_every_learned_parameter(family, method, model_of):
    model = model_of(family)
    vtc.patch(model, method, budget=0.4)
    stir(model)
    found = gradients(model, zoo.prompt(model, 2))
    for name, _ in model.vtc_learned.named_parameters():
        assert torch.isfinite(found[f"{LEARNED}.{name}"]).all(), name
    assert all(found[f"{LEARNED}.{n}"].abs().max() > 0 for n, p in model.vtc_learned.named_parameters() if p.dim() > 1)
    model.zero_grad(set_to_none=True)


@each
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_gradient_checkpointing_gives_the_same_gradient(family, method, reentrant):
    if (family, method) == ("qwen3_vl", "perceiver"):
        skip_before("transformers", 5, 23, why="it replays layers whole, and DeepStack's part of merged tokens is gone")
    model = zoo.build(family)
    model.enable_input_require_grads()
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, method, budget=0.4)
    stir(model)
    model.train()
    want = gradients(model, prompt)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    got = gradients(model, prompt)
    assert got.keys() == want.keys()
    for name, grad in want.items():
        assert_close(name, got[name], grad)


@each
@pytest.mark.parametrize("kind", list(CheckpointImpl))
def test_layers_that_are_replayed_whole_give_the_same_gradient(method, kind):
    """As FSDP's checkpoint wrapper and older transformers do: the stage itself runs inside what is replayed."""
    model = zoo.build("llava")
    model.enable_input_require_grads()
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, method, budget=0.4)
    stir(model)
    want = {name: grad for name, grad in gradients(model, prompt).items() if name.startswith(LEARNED)}
    layers = model.model.language_model.layers
    for index in range(len(layers)):
        layers[index] = checkpoint_wrapper(layers[index], kind)
    got = gradients(model, prompt)
    assert want
    for name, grad in want.items():
        assert_close(name, got[name], grad)


@each
def test_an_optimizer_of_the_models_parameters_trains_it(method):
    model = zoo.build("llava")
    prompt = zoo.prompt(model, 1)
    model.requires_grad_(False)
    vtc.patch(model, method, budget=0.3)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in model.vtc_learned.parameters()}
    labels = prompt["input_ids"].clone()
    labels[:, :-4] = -100
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(**prompt, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_a_method_that_learns_goes_before_one_that_does_not(model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, ["perceiver", "fastv"], budget=0.7)
    plain = logits(model, prompt)
    stir(model)
    assert not torch.equal(logits(model, prompt), plain)
    assert len(engine(model).current.cuts) == 2
    assert patch_of(model).method.learns and not registry["combined"]().learns


@each
def test_generation_in_batches_and_turns_goes_on(method):
    model = zoo.build("llava")
    alone = [zoo.prompt(model, n, seed=n) for n in (1, 2)]
    vtc.patch(model, method, budget=0.3)
    stir(model)
    want = [generate(model, prompt).sequences[0, -4:].tolist() for prompt in alone]
    assert generate(model, zoo.batch(alone)).sequences[:, -4:].tolist() == want


def test_a_patched_model_that_learned_is_not_copied_by_accident(model_of):
    model = model_of("llava")
    vtc.patch(model, "perceiver", budget=0.3)
    with pytest.raises(VTCError, match=r"vtc\.unpatch"):
        copy.deepcopy(model)


def test_a_budget_beyond_the_latents_is_refused_and_the_model_stays_usable(model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "perceiver", budget=8, latents=4)
    with pytest.raises(BudgetError, match=r"keep 8 tokens .* 4 latents; lower the budget to at most 4 there"):
        logits(model, prompt)
    patch_of(model).set_budget(4)
    logits(model, prompt)
    assert vtc.report(model).average_tokens == 4
    with pytest.raises(BudgetError, match="below 1 token"):
        patch_of(model).set_budget(0)
    assert patch_of(model).budget.value == 4
