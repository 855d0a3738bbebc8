"""The keys of a layer of the vision tower."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtc.signals import register
from vtc.signals.base import Signal, TowerCall, TowerHook, View
from vtc.signals.tower_attention import depth_in_words, joined_heads


@register("tower_keys")
@dataclass(frozen=True)
class TowerKeys(Signal):
    """``[I, N, d]``: the tower's keys at layer ``layer``, mean over heads and a token's patches, not normalised.

    ``joined``: the heads side by side, not their mean.
    """

    layer: int | float = -2
    joined: bool = False

    def __post_init__(self) -> None:
        TowerHook(self.layer)  # checks the layer

    def words(self) -> str:
        return f"tower keys ({depth_in_words(self.layer)})"

    def hook(self, stage: int) -> TowerHook:
        return TowerHook(self.layer)

    def capture(self, call: TowerCall) -> Tensor:
        k = joined_heads(call.k, call.q.shape[1]) if self.joined else call.k
        return k.mean(dim=1)

    def read(self, view: View) -> Tensor:
        return view.tower(self)
