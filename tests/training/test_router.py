"""What trains a router: guide and sparsity losses, and the search for how many tokens each layer runs."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

import vtc
from tests import zoo
from tests.support import logits
from vtc.checkpoint.save_load import described, method_from
from vtc.errors import NotReduced, VTCError
from vtc.patching.api import patch_of
from vtc.training.router_losses import Routed, guide_loss, routed, sparsity_loss
from vtc.training.schedule import search


def example(score: torch.Tensor) -> Routed:
    attention = torch.tensor([[0.1, 0.5, 0.3, 0.05, 0.05], [0.6, 0.1, 0.3, 0.0, 0.0]], dtype=torch.float64)
    valid = torch.ones(2, 5, dtype=torch.bool)
    valid[1, 3:] = False
    return Routed(score, attention, valid, [2, 1])


def test_the_guide_is_met_by_the_choice_of_attention_and_by_no_other():
    attention = example(torch.zeros(2, 5, dtype=torch.float64)).attention
    right, wrong = (guide_loss(example(sign * 50 * attention)) for sign in (1, -1))
    assert right < 0.02 < 1 < wrong


def test_sparsity_is_met_where_as_many_scores_are_above_zero_as_run():
    met = torch.tensor([[50.0, 50, -50, -50, -50], [50, -50, -50, 9, 9]], dtype=torch.float64)
    assert sparsity_loss(example(met)) < 1e-12
    assert sparsity_loss(example(met + 100)) > 0.3
    assert torch.isclose(guide_loss(example(met)), guide_loss(example(met + 7)))


@pytest.mark.parametrize("loss", [guide_loss, sparsity_loss])
def test_losses_have_exact_gradients(loss):
    score = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert gradcheck(lambda s: loss(example(s)), (score,))


def test_a_step_down_the_guide_moves_the_routers(model_of):
    model = model_of("llava")
    vtc.patch(model, "router", budget=0.5)
    with pytest.raises(NotReduced, match="over the budget"):
        routed(model)
    model(**zoo.prompt(model, 2))
    layers = routed(model)
    assert [sum(r.valid.sum(1).tolist()) for r in layers] == [72, 72, 72]
    sum(guide_loss(r) + sparsity_loss(r) for r in layers).backward()
    assert all(router[2].weight.grad.abs().max() > 0 for router in model.vtc_learned)
    model.zero_grad(set_to_none=True)
    vtc.unpatch(model)
    with pytest.raises(VTCError, match="routes no tokens"):
        routed(model)


def test_the_search_finds_the_layer_that_needs_tokens_and_keeps_what_was_learned(model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "router", budget=0.5)
    with torch.no_grad():
        model.vtc_learned[0][2].weight.add_(0.5)
    learned = model.vtc_learned

    def missing() -> float:
        logits(model, prompt)
        return -float(vtc.report(model).pictures[0].tokens_by_layer[2])

    even = missing()
    found = [search(model, missing, generations=3, population=3, seed=1) for _ in range(2)]
    assert found[0] == found[1] and found[0].index(max(found[0])) == 1
    assert missing() < even
    assert model.vtc_learned is learned is patch_of(model).method.module
    saved = described(patch_of(model).method)
    assert method_from(saved).schedule == found[0]
    (one,) = vtc.report(model).pictures
    assert one.average == one.tokens_in // 2


def test_a_search_that_fails_leaves_the_schedule_as_it_was(model_of):
    model = model_of("llava")
    with pytest.raises(VTCError, match="only a router"):
        search(model, float)
    vtc.patch(model, "router", budget=0.5, schedule=(1, 2, 3))
    with pytest.raises(VTCError, match="the objective is nan"):
        search(model, lambda: float("nan"))
    assert patch_of(model).method.schedule == (1, 2, 3)
    with pytest.raises(VTCError, match="generations=0"):
        search(model, float, generations=0)
