"""Adaptive: cover the picture at the decoder's input, let the question decide inside the decoder."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtc.kernels.greedy_diverse import greedy_diverse
from vtc.methods import register
from vtc.methods.base import Method, Stage
from vtc.signals import Signal, TextAttention, TowerAttention
from vtc.tokens import Reduction, VisionTokens, cut


@register("adaptive")
@dataclass(frozen=True)
class Adaptive(Method):
    name: ClassVar[str] = "adaptive"
    paper: ClassVar[str] = "vtc"

    layer: int | float | None = 0.25
    narrow: float = 0.5
    select: str = "maxmin"
    of: Literal["previous", "next"] = "next"
    share: bool = field(default=True, kw_only=True)

    def stages(self) -> tuple[Stage, ...]:
        return (Stage(0),) if self.layer is None else (Stage(0), Stage(self.layer, factor=self.narrow))

    def signals(self, stage: int) -> tuple[Signal, ...]:
        if stage:
            return (TextAttention(self.of),)
        return (TowerAttention(-2),) if self.select == "cls" else ()

    @torch.no_grad()
    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        if stage:
            return Reduction.top(signals[TextAttention(self.of)], keep, tokens)
        if self.select == "maxmin":
            order = greedy_diverse(tokens.features, max(keep), "maxmin", tokens.valid)
        elif self.select == "coverage":
            order = greedy_diverse(tokens.features, max(keep), "coverage", tokens.valid)
        else:
            order = greedy_diverse(tokens.features, max(keep), "coverage", tokens.valid, signals[TowerAttention(-2)])
        return Reduction.keep(cut(order, keep), tokens)
