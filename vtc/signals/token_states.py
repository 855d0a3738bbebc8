"""The tokens' own hidden states."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtc.kernels.gather import gather_rows
from vtc.signals import register
from vtc.signals.base import Signal, View


@register("token_states")
@dataclass(frozen=True)
class TokenStates(Signal):
    """``[I, N, D]``: the tokens' own hidden states as they enter the layer before which they are cut, or whose keys are
    reduced."""

    def words(self) -> str:
        return "states (own layer)"

    def read(self, view: View) -> Tensor:
        return gather_rows(view.states[view.tokens.prompt], view.position)
