"""Budgets drawn per step: fixed by seed and step, put back between steps, refused where they cannot be served."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

import vtc
from tests import zoo
from vtc.errors import BudgetError, VTCError
from vtc.patching.api import patch_of
from vtc.tokens import Budget
from vtc.training.elastic import Elastic


@pytest.fixture
def model(model_of):
    return vtc.patch(model_of("llava"), "perceiver", budget=8, latents=12)


def test_draws_depend_on_seed_and_step_alone(model):
    one, other = Elastic(model, (2, 4, 8), seed=3), Elastic(model, (2, 4, 8), seed=3)
    steps = [one.budget(step) for step in range(40)]
    assert [other.budget(step) for step in reversed(range(40))] == steps[::-1]
    assert [Elastic(model, (2, 4, 8), seed=4).budget(step) for step in range(40)] != steps


def test_every_budget_is_drawn_as_often(model):
    drawn = Counter(Elastic(model, (2, 0.5, 8)).budget(step).value for step in range(3000))
    assert drawn.keys() == {2, 0.5, 8}
    assert all(900 < count < 1100 for count in drawn.values())


def test_a_step_spends_its_budget_and_the_next_evaluation_the_usual_one(model):
    elastic, prompt = Elastic(model, (2,)), zoo.prompt(model, 1)
    elastic.begin(0)
    model(**prompt)
    assert vtc.report(model).average_tokens == 2
    elastic.end()
    model(**prompt)
    assert vtc.report(model).average_tokens == 8
    assert patch_of(model).budget == Budget(8)


def test_a_backward_pass_after_the_budget_changed_is_that_of_its_forward(model):
    elastic, prompt = Elastic(model, (2,)), zoo.prompt(model, 1)
    model.train()
    model.gradient_checkpointing_enable()

    def gradient(change: bool) -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        elastic.begin(0)
        loss = model(**prompt, use_cache=False).logits.square().mean()
        if change:
            elastic.end()
        loss.backward()
        return model.vtc_learned.write.weight.grad

    want = gradient(change=False)
    assert torch.equal(gradient(change=True), want) and want.abs().max() > 0
    model.gradient_checkpointing_disable()
    model.zero_grad(set_to_none=True)
    model.eval()


def test_a_trainer_draws_a_budget_for_each_step(model, tmp_path):
    from transformers import Trainer, TrainingArguments

    prompt = zoo.prompt(model, 1)
    row = {key: value[0] for key, value in prompt.items()} | {"labels": prompt["input_ids"][0]}
    elastic, spent = Elastic(model, (2, 4, 8), seed=1), []

    class Watched(Trainer):
        def compute_loss(self, model, inputs, **kwargs):
            spent.append((self.state.global_step, patch_of(model).budget))
            return super().compute_loss(model, inputs, **kwargs)

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        learning_rate=0.0,
        disable_tqdm=True,
    )
    Watched(model=model, args=arguments, train_dataset=[row] * 8, callbacks=[elastic]).train()
    assert spent == [(step, elastic.budget(step)) for step in range(4) for _ in range(2)]
    assert patch_of(model).budget == Budget(8)
    model.eval()


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ((), "no budgets to draw from"),
        ((4, 0), "below 1 token"),
        ((4, 1.5), "not a share"),
        ((4, 13), "budget 13 is above the 12 latents of perceiver"),
    ],
)
def test_budgets_that_cannot_be_served_are_refused(model, budgets, message):
    with pytest.raises(BudgetError, match=message):
        Elastic(model, budgets)


def test_a_model_without_a_patch_is_refused(model_of):
    with pytest.raises(VTCError, match=r"vtc\.patch"):
        Elastic(model_of("llava"), (4,))
