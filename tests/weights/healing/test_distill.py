"""Distillation: the loss as the paper has it, and a pruned model that comes nearer to its original."""

import copy

import pytest
import torch
from torch.nn.functional import softmax

import vtc
from tests import zoo
from vtc.errors import WeightsError
from vtc.weights import in_steps, incrementally
from vtc.weights.healing.distill import Distillation, healer, loss, soft


def prompts(model, seeds):
    return [zoo.prompt(model, pictures=1, seed=n) for n in seeds]


@pytest.fixture
def teacher():
    return zoo.build("llava")


@torch.no_grad()
def apart(model, teacher, examples):
    """Mean divergence from the teacher over all rows, in nats."""
    return sum(float(loss(model(**e), teacher(**e), e, Distillation(temperature=1.0))) for e in examples)


def test_the_soft_loss_is_the_papers():
    torch.manual_seed(0)
    s, t = torch.randn(2, 5, 7, dtype=torch.float64)
    p, q = (softmax(x / 3, -1) for x in (t, s))
    assert float(soft(s, t, 3.0)) == pytest.approx(9 * float((p * (p / q).log()).sum(-1).mean()), rel=1e-5)
    assert float(soft(t, t, 3.0)) == pytest.approx(0, abs=1e-6)


def test_at_high_temperature_its_gradient_is_that_of_matching_logits():
    """Hinton et al., section 2.1: with logits of mean 0 it tends to ``(s - t) / V``."""
    torch.manual_seed(0)
    s, t = (x - x.mean(-1, keepdim=True) for x in torch.randn(2, 1, 6))
    s.requires_grad_()
    soft(s, t, 1000.0).backward()
    assert torch.allclose(s.grad, (s.detach() - t) / 6, atol=1e-3)


@pytest.mark.parametrize("how", [Distillation(), Distillation(hidden=1.0, cosine=1.0)])
def test_a_pruned_model_is_healed(teacher, how):
    """On prompts that it was not healed with."""
    model, before = copy.deepcopy(teacher), {k: v.clone() for k, v in teacher.state_dict().items()}
    seen, heldout, losses = prompts(teacher, range(12)), prompts(teacher, range(100, 104)), []
    recipe = "neurons:share=0.4:score=magnitude:compensate=false"
    heal = healer(teacher, seen, steps=12, how=how)
    incrementally(model, in_steps(recipe, by=0.2), heal=lambda m, n: losses.append(heal(m, n)))
    assert [len(each) for each in losses] == [12, 12]
    unhealed = vtc.compress(copy.deepcopy(teacher), recipe, progress=False)
    assert apart(model, teacher, heldout) < 0.9 * apart(unhealed, teacher, heldout)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items()) and not model.training


def test_half_of_the_layers_learn_from_all():
    """DistilBERT's recipe: every second layer, then logits and directions of states."""
    teacher = zoo.build("llava")
    seen = prompts(teacher, range(3))
    model = vtc.compress(copy.deepcopy(teacher), "layers:share=0.5:choose=even", progress=False)
    assert len(model.model.language_model.layers) == 2
    first = teacher.model.language_model.layers[2].mlp.up_proj.weight
    assert torch.equal(model.model.language_model.layers[1].mlp.up_proj.weight, first)
    losses = healer(teacher, seen, steps=12, lr=1e-3, how=Distillation(cosine=1.0))(model, 0)
    assert losses[-1] < losses[0]


def test_under_a_token_patch_and_autocast(teacher):
    model = copy.deepcopy(teacher)
    vtc.patch(model, "divprune", budget=4)
    losses = healer(teacher, prompts(teacher, [0]), steps=8, lr=1e-3, bfloat16=True)(model, 0)
    assert losses[-1] < losses[0] and next(model.parameters()).dtype == torch.float32


def test_padding_and_labels(teacher):
    batch = zoo.batch(prompts(teacher, [0, 1]))
    example = {**batch, "labels": torch.where(batch["attention_mask"].bool(), batch["input_ids"], -100)}
    other = zoo.build("llava", seed=3)
    with torch.no_grad():
        got, want = other(**batch), teacher(**batch)
        whole = float(loss(got, want, example, Distillation()))
        got.logits[~batch["attention_mask"].bool()] = 1e4
        assert float(loss(got, want, example, Distillation())) == whole
        with_labels = float(loss(other(**batch), want, example, Distillation(labels=0.5)))
        told = float(other(**example).loss)
    assert with_labels == pytest.approx(whole + 0.5 * told, rel=1e-4)


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"temperature": float("nan")}, {"labels": -1}, {"hidden": "1"}, {"cosine": True}]
)
def test_losses_that_make_no_sense(options):
    with pytest.raises(WeightsError):
        Distillation(**options)


def test_refusals(teacher):
    model, examples = copy.deepcopy(teacher), prompts(teacher, [0])
    with pytest.raises(WeightsError, match="nothing to distil on"):
        healer(teacher, [])
    with pytest.raises(WeightsError, match="at least 1"):
        healer(teacher, examples, steps=0)
    with pytest.raises(WeightsError, match="teach itself"):
        healer(teacher, examples)(teacher, 0)
    with pytest.raises(WeightsError, match="requires gradients"):
        healer(teacher, examples)(model.requires_grad_(False), 0)
    with pytest.raises(WeightsError, match="has no labels"):
        healer(teacher, examples, how=Distillation(labels=1.0))(model.requires_grad_(True), 0)
    model.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(WeightsError, match="the loss is nan"):
        healer(teacher, examples)(model, 0)
