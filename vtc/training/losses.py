"""Losses at the positions that are learned. Pure functions; sums stay sums where several processes share a mean."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

IGNORE = -100  # labels that are not learned, as in transformers


def at_labels(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """``(scores [A, V], wanted [A])``: what row t of ``logits [B, N, V]`` says of the label of row t + 1, wherever
    there is one; at least in float32."""
    wanted = labels[:, 1:]
    learned = wanted != IGNORE
    return wide(logits[:, :-1][learned]), wanted[learned]


def answer_loss(scores: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy in nats, the sum over positions."""
    return cross_entropy(scores, wanted, reduction="sum")


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """``T² KL(teacher || student)`` at temperature T, in nats, the sum over positions; both ``[A, V]``.

    T² keeps gradients at the scale of ``answer_loss`` (Hinton et al., arXiv 1503.02531).
    """
    _same_shape("logits", student, teacher)
    said, wanted = (torch.log_softmax(wide(x) / temperature, dim=-1) for x in (student, teacher))
    return temperature**2 * kl_div(said, wanted, reduction="sum", log_target=True)


def hidden_loss(student: Tensor, teacher: Tensor, where: Tensor) -> Tensor:
    """Squared distance of hidden states ``[B, N, D]`` at ``where [B, N]``, relative to the teacher's squared length."""
    _same_shape("hidden states", student, teacher)
    told, wanted = wide(student[where]), wide(teacher[where])
    return (told - wanted).square().sum() / wanted.square().sum().clamp_min(torch.finfo(torch.float32).tiny)


def attention_loss(student: Tensor, teacher: Tensor, where: Tensor) -> Tensor:
    """``KL(teacher || student)`` of attention weights ``[B, H, N, M]``, mean over heads and the rows ``where [B, N]``.

    Keys that the student does not have must be taken out of the teacher's weights before, and each row scaled to 1.
    """
    _same_shape("attention weights", student, teacher)
    least = torch.finfo(torch.float32).tiny
    told, wanted = (wide(x.transpose(1, 2)[where]).clamp_min(least).log() for x in (student, teacher))
    rows = max(1, told.shape[0] * told.shape[1])
    return kl_div(told, wanted, reduction="sum", log_target=True) / rows


def wide(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _same_shape(what: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"{what} are {list(student.shape)} of the student and {list(teacher.shape)} of the teacher; "
            "compare layers of one width, and models of one vocabulary"
        )
