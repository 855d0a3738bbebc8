"""act_learned: untrained it is act; a training forward is the inference forward, and reaches scores and budgets."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

import vtc
from tests import zoo
from tests.engine.sites.test_kv_reduction import cuts_of
from tests.patching.test_learned_methods import gradients, stir
from tests.pictures import batch, picture, ready, reduce, signals
from tests.support import KINDS, engine, logits
from vtc.errors import VTCError
from vtc.methods import ActLearned, Router
from vtc.methods.act_learned import BY_HEAD
from vtc.patching.api import patch_of, prompts_end_at
from vtc.tokens import Reduction


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("family", KINDS)
def test_untrained_it_is_act(family, share, model_of):
    model = model_of(family)
    prompt = zoo.batch([zoo.prompt(model, n, seed=n) for n in (1, 2)])
    with vtc.patched(model, "act", budget=0.4, share=share):
        want = logits(model, prompt)
    vtc.patch(model, "act_learned", budget=0.4, share=share)
    assert torch.equal(logits(model, prompt), want)
    scorers, weights = model.vtc_learned, {}
    for name in ("budgets", "heads", "match"):
        with torch.no_grad():
            weights = {
                "budgets": scorers.budgets,
                "heads": scorers.layers[0].heads,
                "match": scorers.layers[0].read_question[1].bias,
            }
            weights[name][0] += 3
            assert not torch.equal(logits(model, prompt), want), f"{name} never reach the logits"
            weights[name][0] -= 3


@pytest.mark.parametrize("share", [False, True])
def test_training_runs_the_hard_path(share):
    model = zoo.build("llava", dtype=torch.float64)
    prompt = zoo.batch([zoo.prompt(model, n, seed=n) for n in (1, 2)])
    vtc.patch(model, "act_learned", budget=0.4, share=share)
    stir(model)
    want = logits(model, prompt)
    got = model.train()(**prompt)
    assert got.logits.requires_grad and torch.equal(got.logits.detach(), want)


def test_a_layer_that_is_worth_more_gets_more_keys(model_of):
    model = model_of("llava")
    vtc.patch(model, "act_learned", budget=12)
    with torch.no_grad():
        model.vtc_learned.budgets[0] += 0.5
    logits(model, zoo.prompt(model, 1))
    (one,) = vtc.report(model).pictures
    assert sum(one.tokens_by_layer) == 12 * 4
    assert one.tokens_by_layer[0] > 12


def test_it_learns_to_keep_the_key_that_the_loss_needs():
    """A token that attention alone would drop carries the answer: after some steps it stays, and the loss is lower."""
    torch.manual_seed(0)
    tokens = batch([picture((1, 4, 4), 1, torch.float64)])
    method = ready(ActLearned())
    method.module.double()
    seen = signals(method, tokens)
    seen[BY_HEAD] = torch.full_like(seen[BY_HEAD], 1.0)
    seen[BY_HEAD][0, 11] = 0.5
    assert 11 not in reduce_with(method, tokens, seen).anchor[0].tolist()
    optimizer = torch.optim.Adam(method.module.parameters(), lr=0.05)
    for _ in range(60):
        gates = method.gates(tokens, seen, [4])
        hard = (reduce_with(method, tokens, seen).slot >= 0).double()
        optimizer.zero_grad()
        gates.backward(-(torch.arange(16) == 11).double()[None] + 0.01 * hard)
        optimizer.step()
    assert 11 in reduce_with(method, tokens, seen).anchor[0].tolist()


@pytest.mark.parametrize("method", [ActLearned(), Router()])
def test_gates_have_an_exact_gradient_in_what_ranks(method):
    """In float64, against finite differences; pictures of unlike size."""
    tokens = batch([picture((1, 2, 3), 1, torch.float64), picture((1, 2, 2), 2, torch.float64)], pad=1)
    method = ready(method)
    learned = dict(method.module.double().named_parameters())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in learned.values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    seen = {signal: value.double() for signal, value in signals(method, tokens).items()}
    first = [p for name, p in learned.items() if name.startswith(("0.", "layers.0."))]
    assert gradcheck(lambda *_: method.gates(tokens, seen, [3, 2]), first)
    method.gates(tokens, seen, [3, 2])[0, 0].backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in first)


def reduce_with(method: ActLearned, tokens, seen) -> Reduction:
    return method.reduce(0, tokens, seen, [4])


@pytest.mark.parametrize("given", ["labels", "context", "left-padded"])
def test_what_stays_does_not_know_the_answer(given, model_of):
    """In training the answer stands in the same rows; keys must be ranked by the prompt's last row, as when asked."""
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "act_learned", budget=0.3)
    logits(model, prompt)
    alone = [cut.reduction.anchor.tolist() for cut in cuts_of(model).values()]
    length = prompt["input_ids"].shape[1]
    told = zoo.prompt(model, 1, after=6)
    told["input_ids"] = torch.cat([prompt["input_ids"], torch.tensor([zoo.words(4, seed=3)])], dim=1)
    told["attention_mask"] = torch.ones_like(told["input_ids"])
    if given == "left-padded":
        told = zoo.batch([told, zoo.prompt(model, 2)])
    labels = torch.full_like(told["input_ids"], -100)
    start = length if given != "left-padded" else told["input_ids"].shape[1] - 4
    labels[:, start:] = told["input_ids"][:, start:]

    def anchors() -> list:
        cuts = cuts_of(model).values()
        return [[a for a in cut.reduction.anchor[0].tolist() if a >= 0] for cut in cuts]

    wanted = [one[0] for one in alone]
    logits(model, told)
    without = anchors()
    if given == "context":
        with prompts_end_at(model, labels):
            logits(model, told)
        assert engine(model).prompt_ends.labels is None
    else:
        logits(model, told, labels=labels)
    assert anchors() == wanted != without
    with pytest.raises(ValueError, match="labels are"), prompts_end_at(model, labels[:, 1:]):
        logits(model, told)
    with prompts_end_at(model, labels.new_full(labels.shape, -100)):
        logits(model, told)
    assert anchors() == without


@pytest.mark.parametrize("method", ["act_learned", "router"])
def test_gradients_are_those_of_the_prompt_alone_in_a_padded_batch(method):
    """Padding, and another prompt in the batch, do not move what a scorer learns."""
    model = zoo.build("llava", dtype=torch.float64)
    one, two = zoo.prompt(model, 1), zoo.prompt(model, 2, seed=4)
    vtc.patch(model, method, budget=0.4)
    stir(model)

    def learned(*prompts: dict) -> list[torch.Tensor]:
        both = zoo.batch(list(prompts))
        labels = torch.full_like(both["input_ids"], -100)
        labels[:, -3:] = both["input_ids"][:, -3:]
        model.zero_grad(set_to_none=True)
        model(**both, labels=labels).loss.backward()
        return [p.grad * len(prompts) for p in model.vtc_learned.parameters()]

    together = learned(one, two)
    for got, a, b in zip(together, learned(one), learned(two), strict=True):
        torch.testing.assert_close(got, a + b)


def test_bad_options_and_a_method_without_a_model_are_refused(model_of):
    for width in (0, 1.5, True):
        with pytest.raises(ValueError, match="give one, like 32"):
            ActLearned(width=width)
    tokens = batch([picture((1, 3, 3), 1)])
    with pytest.raises(VTCError, match=r"vtc\.patch"):
        reduce(ActLearned(), tokens, [2])
    model = model_of("llava")
    with pytest.raises(ValueError, match="give a lower one"):
        vtc.patch(model, "act_learned", layer=4)
    assert patch_of(model) is None
    vtc.patch(model, "act_learned", layer=1, budget=0.5)
    assert len(model.vtc_learned.layers) == 3
    assert gradients(model, zoo.prompt(model, 1))["vtc_learned.layers.2.heads"].abs().max() > 0
