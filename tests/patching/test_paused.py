"""``paused``: the whole model inside, its patch untouched, gradients of a forward from before included."""

from __future__ import annotations

import pytest
import torch

import vtc
from tests import zoo
from tests.engine.test_gradients import gradient, loss_of
from tests.support import KINDS, logits
from tests.tolerances import assert_close
from vtc.patching.api import paused

TRIED = ("divprune", "bipartite", "fastv", "visionzip", "sparsevlm", "kvmerge", "perceiver")


@pytest.mark.parametrize("method", TRIED)
def test_a_paused_model_is_the_whole_model(method, model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    want = logits(model, prompt)
    vtc.patch(model, method, budget=0.4)
    patched = logits(model, prompt)
    with paused(model):
        assert torch.equal(logits(model, prompt), want)
    assert torch.equal(logits(model, prompt), patched)
    assert not torch.equal(patched, want)


@pytest.mark.parametrize("family", KINDS)
def test_in_every_kind_of_family(family, model_of):
    model = model_of(family)
    prompt = zoo.prompt(model, 1)
    want = logits(model, prompt)
    vtc.patch(model, "divprune", budget=0.4, share=True)
    with paused(model):
        assert torch.equal(logits(model, prompt), want)


def test_merging_in_the_tower_pauses(model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    want = logits(model, prompt)
    vtc.patch(model, "tome", budget=0.4)
    with paused(model):
        assert_close("logits", logits(model, prompt), want)
    assert not torch.allclose(logits(model, prompt), want)


def test_the_patched_gradient_is_the_same_after_a_paused_forward():
    model = zoo.build("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "bipartite", budget=0.4)
    want = gradient(model, prompt)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    with paused(model), torch.no_grad():
        loss_of(model, prompt)
    assert_close("gradient", gradient(model, prompt), want)


def test_errors_and_models_without_a_patch(model_of):
    model = model_of("llava")
    with paused(model) as same:
        assert same is model
    vtc.patch(model, "random", budget=0.4)
    with pytest.raises(ZeroDivisionError), paused(model):
        raise ZeroDivisionError
    assert not vtc.patch_of(model).engine.paused
