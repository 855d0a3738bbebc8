"""DivPrune: keep the most diverse tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.kernels.nearest import nearest, unit
from vtc.methods import register
from vtc.methods.base import Method
from vtc.signals import Signal
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
        direction = unit(tokens.features)
        sound = direction.isfinite().all(2)
        _, cosine = nearest(direction, direction, tokens.valid, skip_self=True)
        distance = (1 - cosine).where(sound, -2.0).where(tokens.valid, -torch.inf)  # alone in its picture: +inf
        order = torch.empty(len(keep), max(keep), dtype=torch.int64, device=distance.device)
        nearest_chosen = torch.full_like(distance, torch.inf).where(sound, -2.0).where(tokens.valid, -torch.inf)
        for step in range(max(keep)):
            chosen = (distance if step == 0 else nearest_chosen).argmax(dim=1, keepdim=True)
            order[:, step : step + 1] = chosen
            row = direction.gather(1, chosen[..., None].expand(-1, -1, direction.shape[2]))
            away = 1 - (direction @ row.mT)[..., 0]
            nearest_chosen = torch.fmin(nearest_chosen, away).scatter_(1, chosen, -torch.inf)
        return Reduction.keep(cut(order, keep), tokens)
