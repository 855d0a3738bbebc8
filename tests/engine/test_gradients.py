"""Invariant 7: gradients flow through what merges, checkpointing gives the same ones, labels stay aligned."""

from __future__ import annotations

import pytest
import torch

import vtc
from tests import zoo
from tests.support import IN_DECODER, KINDS, MERGING, METHODS, SOME_PAIRS, STOPPING, engine, kept
from tests.tolerances import assert_close
from tests.versions import before
from vtc.errors import UnsupportedModel
from vtc.models import family_of

REPLAYED = (
    *("divprune", "bipartite", "prumerge", "vscan", "fastv", "pyramiddrop", "fastvid", "sparsevlm"),
    *("act", "kvmerge", "tome", "perceiver"),
)


def loss_of(model, prompt: dict) -> torch.Tensor:
    labels = prompt["input_ids"].clone()
    labels[:, :-4] = -100
    return model(**prompt, labels=labels, use_cache=False).loss


def gradient(model, prompt: dict) -> torch.Tensor:
    """Gradient of the loss on the projector and tower: whatever feeds vision tokens."""
    model.zero_grad(set_to_none=True)
    loss_of(model, prompt).backward()
    inner = {id(p) for p in family_of(model).decoder.parameters()}
    grads = [p.grad.flatten() for p in model.parameters() if id(p) not in inner and p.grad is not None]
    model.zero_grad(set_to_none=True)
    return torch.cat(grads)


@pytest.mark.parametrize(("family", "method"), SOME_PAIRS)
def test_gradients_are_finite_and_reach_the_tower(family, method, model_of):
    model = model_of(family)
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, method, budget=0.4, **({"share": True} if method == "divprune" else {}))
    grad = gradient(model, prompt)
    assert torch.isfinite(grad).all()
    assert grad.abs().max() > 0


@pytest.mark.parametrize("method", [*(name for name in MERGING if name not in IN_DECODER), "divprune"])
def test_every_merged_token_gets_a_gradient(method, model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, method, budget=0.4, **({"share": True} if method == "divprune" else {}))
    entering = []

    def keep(module, args, kwargs):
        kwargs["inputs_embeds"].retain_grad()
        entering.append(kwargs["inputs_embeds"])

    handle = family_of(model).decoder.register_forward_pre_hook(keep, with_kwargs=True)
    loss_of(model, prompt).backward()
    handle.remove()
    cut = engine(model).current.cuts[0]
    used = cut.reduction.slot[0] >= 0
    assert used.all() or method in ("visionzip", "holitom")  # these drop tokens too
    norms = entering[0].grad[0, cut.tokens.row[0]].norm(dim=-1)
    assert (norms[used] > 0).all()
    assert (norms[~used] == 0).all()
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("method", REPLAYED)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl"])
def test_gradient_checkpointing_gives_the_same_gradient(family, method, reentrant):
    """Trap 8. Kept tokens, loss and gradient must not depend on what is recomputed."""
    model = zoo.build(family)
    model.enable_input_require_grads()
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, method, budget=0.4)
    model.train()
    want = gradient(model, prompt)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    if reentrant and method in STOPPING:
        with pytest.raises(UnsupportedModel, match="use_reentrant"):
            gradient(model, prompt)
        return
    if before("transformers", 5, 23) and (family == "qwen3_vl" and method in MERGING or method == "tome" and reentrant):
        with pytest.raises(UnsupportedModel, match="5.23|use_reentrant=False"):  # it replays layers whole
            gradient(model, prompt)
        return
    got = gradient(model, prompt)
    assert_close("gradient", got, want)


@pytest.mark.parametrize("method", REPLAYED)
@pytest.mark.parametrize("between", ["nothing", "a picture", "text", "no grad"])
def test_replayed_layers_belong_to_their_own_forward(method, between):
    """Checkpoint wrappers (FSDP) and older transformers replay a layer's whole call in the backward pass, maybe after
    another forward: DPO runs its reference model in between."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = zoo.build("llava")
    prompt, other = zoo.prompt(model, 1), zoo.prompt(model, 0 if between == "text" else 1, seed=5)

    def grads() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        loss = loss_of(model, prompt)
        if between == "no grad":
            with torch.no_grad():
                loss_of(model, other)
        elif between != "nothing":
            loss_of(model, other)
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.model.multi_modal_projector.parameters()])

    vtc.patch(model, method, budget=0.4)
    want = grads()
    layers = model.model.language_model.layers
    for index in range(len(layers)):
        layers[index] = checkpoint_wrapper(layers[index])
    assert_close("gradient", grads(), want)


@pytest.mark.parametrize("family", KINDS)
def test_a_label_after_a_dropped_token_is_predicted_by_its_kept_predecessor(family, model_of):
    model = model_of(family)
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "random", budget=0.4)
    with torch.no_grad():
        out = model(**prompt, labels=prompt["input_ids"].clone())
    cut = engine(model).current.cuts[0]
    kept = set(cut.rows[0].tolist())
    rows = range(prompt["input_ids"].shape[1])
    behind = [max((k for k in kept if k <= r), default=min(kept)) for r in rows]
    assert torch.equal(out.logits[0], out.logits[0, behind])
    assert torch.isfinite(out.loss)


def test_a_training_step_lowers_the_loss():
    model = zoo.build("llava")
    prompt = zoo.batch([zoo.prompt(model, 1, seed=s) for s in (1, 2)])
    vtc.patch(model, "bipartite", budget=0.3, share=True)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(4):
        loss = loss_of(model, prompt)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", METHODS)
def test_no_method_chooses_by_the_answer(method, model_of):
    """What is learned is no part of the prompt: another answer, the same tokens; by words and by last rows alike."""
    model = model_of("llava")
    vtc.patch(model, method, budget=0.4)
    sets = []
    for answer in (zoo.words(4, seed=1), zoo.words(4, seed=2)):
        prompt = zoo.prompt(model, 1)
        prompt["input_ids"][0, -4:] = torch.tensor(answer)
        loss_of(model, prompt)
        sets.append(kept(model))
    assert sets[0] == sets[1]
