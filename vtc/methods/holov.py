"""HoloV: every part of the picture keeps tokens in proportion to the attention it gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.kernels.merge import merge
from vtc.methods import register
from vtc.methods._ranks import first, ranks_within
from vtc.methods.base import Method
from vtc.signals.base import Signal
from vtc.signals.tower_attention import TowerAttention
from vtc.tokens import Reduction, VisionTokens, cut


@register("holov")
@dataclass(frozen=True)
class HoloV(Method):
    """The tokens in reading order are cut into ``crops`` runs of near-equal length. A run may keep tokens in proportion
    to its mean CLS attention (the floor; what is left goes one each to the runs of the largest shares), and keeps those
    of the largest attention. What a run can not use goes to the best tokens anywhere.

    Don't Just Chase "Highlighted Tokens" in MLLMs: Revisiting Visual Holistic Context Retention, arXiv 2510.02912.
    Departs from the paper, not from what its code computes: the variance of similarity inside a run, which the paper
    adds to its score, cancels there and is left out. Departs from the code too where a run has one token (its share is
    a thousandth there) or fewer than its quota (zero tokens fill up).
    """

    name: ClassVar[str] = "holov"
    paper: ClassVar[str] = (
        'Don\'t Just Chase "Highlighted Tokens" in MLLMs: Revisiting Visual Holistic Context Retention, '
        "arXiv 2510.02912"
    )
    variants: ClassVar[str] = "where the tower has no CLS token: mean attention received from all its tokens"

    crops: int = 16

    def __post_init__(self) -> None:
        n = self.crops
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"holov: crops={n!r} is not an int >= 1; the paper's is 16")
        super().__post_init__()

    def signals(self, stage: int) -> tuple[Signal, ...]:
        return (TowerAttention(-2),)

    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        attention = signals[TowerAttention(-2)]
        crop = runs(tokens, self.crops)
        inside = ranks_within(crop, attention, tokens) < quotas(attention, crop, self.crops, tokens, keep).gather(
            1, crop
        )
        return Reduction.keep(cut(first(inside, attention, tokens), keep), tokens)


def runs(tokens: VisionTokens, crops: int) -> Tensor:
    """``[I, N]``: the run of each token, 0 .. crops - 1; the first ones are one token longer (any run in padding)."""
    count = torch.tensor(tokens.count, device=tokens.row.device)[:, None]
    index = torch.arange(tokens.row.shape[1], device=tokens.row.device)
    short, longer = count // crops, count % crops
    late = longer + (index - longer * (short + 1)) // short.clamp(min=1)
    return torch.where(index < longer * (short + 1), index // (short + 1), late).clamp(max=crops - 1)


def quotas(attention: Tensor, crop: Tensor, crops: int, tokens: VisionTokens, keep: list[int]) -> Tensor:
    """``[I, crops]``: how many tokens each run may keep."""
    sound = attention.where(attention.isfinite() & tokens.valid, 0)[..., None]
    mean = merge(1000 * sound, crop.where(tokens.valid, -1), None, tokens.size, crops)[..., 0]
    share = mean / (mean.sum(1, keepdim=True) + 1e-6)
    wanted = torch.tensor(keep, device=share.device)[:, None]
    quota = (share * wanted).long()
    order = share.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(crops, device=order.device).expand_as(order))
    return quota + (rank < wanted - quota.sum(1, keepdim=True))
