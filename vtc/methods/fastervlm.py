"""FasterVLM: keep the tokens the tower looks at most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtc.methods import register
from vtc.methods.base import Method
from vtc.signals.base import Signal
from vtc.signals.tower_attention import TowerAttention
from vtc.tokens import Reduction, VisionTokens


@register("fastervlm")
@dataclass(frozen=True)
class FasterVLM(Method):
    """Keep the tokens of the largest CLS attention, mean over heads, in the tower's second last layer.

    [CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster, arXiv 2412.01818.
    Departs from the paper: nothing; but on towers without a CLS token it was measured worse than random by others.
    """

    name: ClassVar[str] = "fastervlm"
    paper: ClassVar[str] = (
        "[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster, "
        "arXiv 2412.01818"
    )
    variants: ClassVar[str] = "where the tower has no CLS token: mean attention received from all its tokens"

    def signals(self, stage: int) -> tuple[Signal, ...]:
        return (TowerAttention(-2),)

    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        return Reduction.top(signals[TowerAttention(-2)], keep, tokens)
