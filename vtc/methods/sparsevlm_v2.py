"""SparseVLM, version 2: three cuts by what the raters attend to in the heads that look at the picture most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtc.methods import register
from vtc.methods.base import Method, Stage
from vtc.methods.sparsevlm import inside
from vtc.signals.base import Signal
from vtc.signals.rater_attention import RaterAttention
from vtc.tokens import Reduction, VisionTokens

GRAVITY = RaterAttention(gravity=True)


@register("sparsevlm_v2")
@dataclass(frozen=True)
class SparseVLMv2(Method):
    """Before each of ``layers`` (increasing; ints from 1, or fractions of depth) keep the tokens to which the raters,
    text rows that the pictures are close to, attended most in the layer before. Each attention is divided by what the
    distance alone gives (``RaterAttention.gravity``); then it is the mean over raters and over the ``heads`` heads with
    the largest sums over raters and tokens. Nothing is merged.

    Stage s keeps ``ratio ** (s + 1)`` of the tokens, with the one ratio that meets the budget.

    SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference, arXiv 2410.04417, version 2.0
    of its code. Departs from the paper: the budget says how many stay (there, lists by hand for three budgets); what
    distance gives is at least a tenth of what no distance gives (there, in narrow heads, it crosses zero).
    """

    name: ClassVar[str] = "sparsevlm_v2"
    paper: ClassVar[str] = (
        "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference, arXiv 2410.04417, "
        "version 2.0 of its code"
    )

    layers: tuple[int | float, ...] = (3 / 32, 7 / 32, 16 / 32)
    heads: int = 14

    def __post_init__(self) -> None:
        n = self.heads
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"sparsevlm_v2: heads={n!r} is not an int >= 1; the paper's is 14, of 32")
        object.__setattr__(self, "layers", inside(self.name, self.layers))
        super().__post_init__()

    def stages(self) -> tuple[Stage, ...]:
        return tuple(Stage(layer, power) for power, layer in enumerate(self.layers, start=1))

    def signals(self, stage: int) -> tuple[Signal, ...]:
        return (GRAVITY,)

    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        by_head = signals[GRAVITY]
        total = by_head.where(tokens.valid[..., None], 0).nansum(dim=1)
        chosen = total.argsort(dim=1, descending=True, stable=True)[:, : self.heads].sort(dim=1).values
        score = by_head.gather(2, chosen[:, None].expand(-1, by_head.shape[1], -1)).mean(dim=2)
        return Reduction.top(score, keep, tokens)
