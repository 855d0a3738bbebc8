"""The tokens' own hidden states."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtc.signals import register
from vtc.signals.base import Signal, View, on_tokens


@register("token_states")
@dataclass(frozen=True)
class TokenStates(Signal):
    """``[I, N, D]``: the tokens' own hidden states as they enter the layer before which they are cut, or whose keys are
    reduced; 0 in padding."""

    def words(self) -> str:
        return "states (own layer)"

    def read(self, view: View) -> Tensor:
        return on_tokens(view.states, view)
