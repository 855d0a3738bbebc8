"""SCOPE: keep the tokens that look most like those not covered yet, weighed by the tower's attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.kernels.greedy_diverse import greedy_diverse
from vtc.methods import register
from vtc.methods.base import Method
from vtc.signals.base import Signal
from vtc.signals.tower_attention import TowerAttention
from vtc.tokens import Reduction, VisionTokens, cut


@register("scope")
@dataclass(frozen=True)
class Scope(Method):
    """Greedy: with c_ij the cosine of features and cover_j the largest c_mj of a chosen m (0 before the first), choose
    the i of largest attention_i ** alpha * sum_j max(0, c_ij - cover_j). A token whose attention is NaN has none.

    SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodel LLMs, arXiv 2510.24214. Departs from the
    paper: features are the projected ones (there, the tower's); the authors' code can also add gain and saliency
    (``combined="add"``), here they are multiplied, as in the paper's equation (``"multi"``).
    """

    name: ClassVar[str] = "scope"
    paper: ClassVar[str] = (
        "SCOPE: Saliency-Coverage Oriented Token Pruning for Efficient Multimodel LLMs, arXiv 2510.24214"
    )
    variants: ClassVar[str] = "where the tower has no CLS token: mean attention received from all its tokens"

    alpha: float = 1.0

    def __post_init__(self) -> None:
        a = self.alpha
        if isinstance(a, bool) or not isinstance(a, (int, float)) or not 0 <= a < float("inf"):
            raise ValueError(f"scope: alpha={a!r} is not a finite number >= 0; the paper's is 1.0")
        super().__post_init__()

    def signals(self, stage: int) -> tuple[Signal, ...]:
        return (TowerAttention(-2),)

    @torch.no_grad()
    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        saliency = signals[TowerAttention(-2)].nan_to_num(nan=0.0, posinf=1.0).clamp(min=0) ** self.alpha
        order = greedy_diverse(tokens.features, max(keep), "coverage", tokens.valid, saliency)
        return Reduction.keep(cut(order, keep), tokens)
