"""Who teaches: the model itself without its patch, or another model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vtc.errors import UnsupportedModel
from vtc.patching.api import paused
from vtc.training.collate import Collator
from vtc.training.conversations import Conversation, Turn
from vtc.training.losses import IGNORE


class Teacher(Protocol):
    def __call__(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """``[B, N, V]``: the teacher's logits for the batch that ``model`` learns from."""
        ...


class Own:
    """The unpatched model, its adapters off: no second copy in memory. What is trained in place (projector, layers,
    all) moves the teacher, too; adapters and a patch's own parameters do not."""

    @torch.no_grad()
    def __call__(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        adapted = getattr(getattr(model, "module", model), "disable_adapter", None)
        with paused(model), adapted() if adapted is not None else nullcontext():
            return model(**inputs, use_cache=False).logits


class Other:
    """Another model, as it is; it reads the very batches of the student, so both must share tokens and pictures."""

    def __init__(self, model: nn.Module):
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        return self.model(**inputs, use_cache=False).logits


def check_alike(student: Any, teacher: Any, row: Conversation) -> None:
    """Raises ``UnsupportedModel`` unless both processors make the same batch of ``row``."""
    ours, theirs = Collator(student)([row]), Collator(teacher)([row])
    same = ours.keys() == theirs.keys() and all(
        v.shape == theirs[k].shape and torch.equal(v, theirs[k]) for k, v in ours.items() if isinstance(v, Tensor)
    )
    if not same:
        raise UnsupportedModel(
            f"teacher and student read sample {row.id} as different tokens or pixels, so their logits cannot be "
            "compared; leave out --distill: the student then learns the teacher's answers"
        )


@torch.no_grad()
def answers(
    model: Any, processor: Any, rows: Iterable[Conversation], max_new_tokens: int = 64
) -> Iterator[Conversation]:
    """Sequence-level distillation (Kim and Rush, arXiv 1606.07947): the conversations with the greedy answers of
    ``model``, each turn after its own earlier answers."""
    collate = Collator(processor)
    asks = collate.asks
    asks.model, asks.max_new_tokens = model, max_new_tokens
    for row in rows:
        turns: list[Turn] = []
        for turn in row.turns:
            asked = replace(row, turns=(*turns, Turn(turn.user, turn.answer)))
            batch = collate([asked])
            learned = (batch["labels"][0] != IGNORE).nonzero()[:, 0]
            begin = _last_answer(learned)
            prompt = {k: v for k, v in batch.items() if isinstance(v, Tensor) and k != "labels"}
            wide = batch["input_ids"].shape
            prompt = {k: v[:, :begin] if v.shape == wide else v for k, v in prompt.items()}
            new = asks.generate({k: v.to(model.device) for k, v in prompt.items()})
            turns.append(Turn(turn.user, asks.decode(new)[0].strip()))
        yield replace(row, turns=tuple(turns))


def _last_answer(learned: Tensor) -> int:
    """Where the last run of learned positions begins."""
    gaps = (learned.diff() > 1).nonzero()[:, 0]
    return int(learned[int(gaps[-1]) + 1] if len(gaps) else learned[0])
