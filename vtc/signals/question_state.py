"""The hidden state of the question's last word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtc.kernels.gather import gather_rows
from vtc.signals import register
from vtc.signals.base import Signal, View


@register("question_state")
@dataclass(frozen=True)
class QuestionState(Signal):
    """``[I, D]``, a picture's and not its tokens': the hidden state of the prompt's last row as it enters that
    layer."""

    asks: ClassVar[bool] = True
    per_picture: ClassVar[bool] = True

    def words(self) -> str:
        return "states (own layer)"

    def read(self, view: View) -> Tensor:
        return gather_rows(view.states, view.last[:, None])[view.tokens.prompt, 0]
