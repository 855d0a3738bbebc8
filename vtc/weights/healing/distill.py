"""A smaller model learns what the one it was made of says: distillation (Hinton et al., arXiv 1503.02531).

``healer`` makes what ``vtc.weights.incrementally`` calls between its steps; it also heals once, after everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div

from vtc.errors import WeightsError
from vtc.weights.calibration.block_walk import Example


@dataclass(frozen=True)
class Distillation:
    """What the student is asked for: the teacher's distribution at ``temperature``, and by these weights the ``labels``
    of the examples (cross entropy), the teacher's last states (``hidden``: mean squared error; Minitron, 2407.14679)
    and their direction (``cosine``: 1 - cosine; DistilBERT, 1910.01108)."""

    temperature: float = 2.0
    labels: float = 0.0
    hidden: float = 0.0
    cosine: float = 0.0

    def __post_init__(self) -> None:
        if not _number(self.temperature) or self.temperature <= 0:
            raise WeightsError(f"temperature must be above 0, like 2, not {self.temperature!r}")
        for name in ("labels", "hidden", "cosine"):
            if not _number(getattr(self, name)) or getattr(self, name) < 0:
                raise WeightsError(f"{name} is a weight of the loss, from 0 on, not {getattr(self, name)!r}")

    @property
    def states(self) -> bool:
        """Whether last states are compared."""
        return self.hidden > 0 or self.cosine > 0


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def soft(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T² KL(softmax(teacher / T) || softmax(student / T))``, mean over the rows of logits ``[N, V]``."""
    got, want = ((logits.float() / temperature).log_softmax(-1) for logits in (student, teacher))
    return temperature**2 * kl_div(got, want, log_target=True, reduction="batchmean")


def loss(student: Any, teacher: Any, example: Example, how: Distillation) -> Tensor:
    """The loss of the student's output on one ``example`` beside the teacher's; padding does not count."""
    if student.logits.shape != teacher.logits.shape:
        raise WeightsError(
            f"student and teacher give logits {list(student.logits.shape)} and {list(teacher.logits.shape)}; distil "
            "between models of one vocabulary"
        )
    mask = example.get("attention_mask")
    rows = torch.ones(student.logits.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    rows = rows.to(student.logits.device)
    total = soft(student.logits[rows], teacher.logits[rows], how.temperature)
    if how.labels:
        if example.get("labels") is None:
            raise WeightsError("labels has a weight and an example has no labels; add them, or set labels=0")
        wanted = example["labels"][:, 1:].to(student.logits.device)
        total = total + how.labels * cross_entropy(student.logits[:, :-1].float().transpose(1, 2), wanted)
    if how.states:
        got, want = (output.hidden_states[-1][rows].float() for output in (student, teacher))
        total = total + how.hidden * (got - want).square().mean()
        total = total + how.cosine * (1 - cosine_similarity(got, want, dim=-1)).mean()
    return total


def healer(
    teacher: nn.Module,
    examples: Iterable[Example],
    steps: int = 100,
    lr: float = 1e-4,
    how: Distillation | None = None,
    bfloat16: bool = False,
) -> Callable[[nn.Module, int], list[float]]:
    """``heal(model, n)``: ``steps`` steps of AdamW on the parameters of ``model`` that require gradients; the losses.

    teacher: the original, which is not changed; examples: as the processor makes them, in turn; bfloat16: under
    ``torch.autocast``. Raises ``WeightsError`` without examples, for a model that teaches itself or has nothing to
    train, and when the loss is no number (the model is then as that step found it).
    """
    drawn, how = list(examples), how or Distillation()
    if not drawn:
        raise WeightsError("there is nothing to distil on; give a few dozen prompts, as the processor makes them")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1 or not _number(lr) or lr <= 0:
        raise WeightsError(f"steps is at least 1 and lr above 0, not {steps!r} and {lr!r}")

    def heal(model: nn.Module, n: int = 0) -> list[float]:
        if model is teacher:
            raise WeightsError("a model cannot teach itself; load the original once more as the teacher")
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise WeightsError("no parameter requires gradients; distil before quantizing, or train adapters (peft)")
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
        training, losses = model.training, []
        model.train()
        try:
            for example in islice(cycle(drawn), steps):
                losses.append(_step(model, teacher, example, how, optimizer, parameters, bfloat16))
        finally:
            model.train(training)
        return losses

    return heal


@torch.enable_grad()
def _step(model, teacher, example, how, optimizer, parameters, bfloat16) -> float:  # type: ignore[no-untyped-def]
    asked = {**example, "use_cache": False, "output_hidden_states": how.states}
    asked.pop("labels", None)  # the loss is ours
    device = parameters[0].device.type
    with torch.autocast(device, torch.bfloat16) if bfloat16 else nullcontext():
        with torch.no_grad():
            want = teacher(**asked)
        found = loss(model(**asked), want, example, how)
    if not bool(torch.isfinite(found)):
        raise WeightsError(f"the loss is {found.item()}; lower lr, or look at the example that makes it")
    optimizer.zero_grad(set_to_none=True)
    found.backward()
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    return found.item()
