"""Losses: by hand, in the limits, and their gradients."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from vtc.training.losses import answer_loss, at_labels, attention_loss, distillation_loss, hidden_loss


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_row_predicts_the_label_after_it():
    logits, labels = draw(2, 4, 5), torch.tensor([[-100, 3, -100, 1], [-100, -100, 2, -100]])
    scores, wanted = at_labels(logits, labels)
    assert torch.equal(scores, torch.stack([logits[0, 0], logits[0, 2], logits[1, 1]]))
    assert wanted.tolist() == [3, 1, 2]


def test_the_answer_loss_is_that_of_transformers():
    from transformers.loss.loss_utils import ForCausalLMLoss

    logits, labels = draw(2, 6, 7), torch.tensor([[-100, 3, 4, -100, 1, 6], [-100, -100, 2, 5, -100, -100]])
    scores, wanted = at_labels(logits, labels)
    want = ForCausalLMLoss(logits, labels, vocab_size=7)
    assert float(answer_loss(scores, wanted) / len(wanted)) == pytest.approx(float(want), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation_is_the_divergence_at_a_temperature_times_its_square(temperature):
    student, teacher = draw(3, 5), draw(3, 5, seed=1)
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    want = temperature**2 * (p * (p / q).log()).sum()
    assert float(distillation_loss(student, teacher, temperature)) == pytest.approx(float(want), rel=1e-5)
    assert float(distillation_loss(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-6)


def test_at_high_temperature_the_gradient_is_that_of_centred_logits():
    """Hinton et al., section 2.1: T² keeps it at (z - v) / V, whatever T is."""
    student, teacher = draw(1, 8).requires_grad_(), draw(1, 8, seed=1)
    distillation_loss(student, teacher, 1e3).backward()
    apart = student.detach() - teacher
    assert torch.allclose(student.grad, (apart - apart.mean()) / 8, atol=1e-3)


def test_hidden_states_are_compared_where_asked_relative_to_the_teacher():
    teacher, where = draw(1, 4, 3), torch.tensor([[True, False, True, False]])
    student = teacher.clone()
    student[0, 1] += 5
    assert hidden_loss(student, teacher, where) == 0
    assert float(hidden_loss(torch.zeros_like(teacher), teacher, where)) == pytest.approx(1)
    assert float(hidden_loss(1.5 * teacher, teacher, where)) == pytest.approx(0.25, rel=1e-5)


def test_attention_is_compared_by_row_and_head():
    teacher, where = draw(1, 2, 3, 4).softmax(-1), torch.tensor([[False, True, True]])
    student = draw(1, 2, 3, 4, seed=1).softmax(-1)
    rows = teacher[:, :, 1:], student[:, :, 1:]
    want = (rows[0] * (rows[0] / rows[1]).log()).sum(-1).mean()
    assert float(attention_loss(student, teacher, where)) == pytest.approx(float(want), rel=1e-5)
    masked = torch.zeros_like(teacher)
    masked[..., 0] = 1
    assert float(attention_loss(masked, masked, where)) == 0, "keys with no weight are no NaN"


@pytest.mark.parametrize("loss", [distillation_loss, lambda s, t: hidden_loss(s, t, torch.ones(2, 3, dtype=bool))])
def test_other_shapes_are_refused(loss):
    with pytest.raises(ValueError, match="of the student"):
        loss(draw(2, 3, 4), draw(2, 3, 5))


def test_gradients_are_exact():
    """In float64, against finite differences."""
    where, labels = (
        torch.tensor([[True, False, True], [True, True, True]]),
        torch.tensor([[-100, 2, 1], [-100, -100, 3]]),
    )
    student = draw(2, 3, 4, seed=1).double().requires_grad_()
    teacher = draw(2, 3, 4).double()
    rows, told = draw(2, 2, 3, 4).double().requires_grad_(), draw(2, 2, 3, 4, seed=1).double().softmax(-1)
    assert gradcheck(lambda x: answer_loss(*at_labels(x, labels)), (student,))
    assert gradcheck(lambda x: distillation_loss(x.flatten(0, 1), teacher.flatten(0, 1), 2.0), (student,))
    assert gradcheck(lambda x: hidden_loss(x, teacher, where), (student,))
    assert gradcheck(lambda x: attention_loss(x.softmax(-1), told, where), (rows,))
