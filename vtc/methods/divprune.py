"""DivPrune: keep the most diverse tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.kernels.greedy_diverse import greedy_diverse
from vtc.methods import register
from vtc.methods.base import Method
from vtc.signals.base import Signal
from vtc.tokens import Reduction, VisionTokens, cut


@register("divprune")
@dataclass(frozen=True)
class DivPrune(Method):
    """Greedy max-min diversity under the distance 1 - cosine of the features: first the token farthest from its nearest
    other, then always the one farthest from all chosen so far.

    DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models, arXiv 2503.02175. Departs from the
    paper: a chosen token can not be chosen again (there, an exact copy can). Tokens with a NaN come last.
    """

    name: ClassVar[str] = "divprune"
    paper: ClassVar[str] = (
        "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models, arXiv 2503.02175"
    )

    @torch.no_grad()
    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        order = greedy_diverse(tokens.features, max(keep), "maxmin", tokens.valid)
        return Reduction.keep(cut(order, keep), tokens)
