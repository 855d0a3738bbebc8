"""PruMerge+: PruMerge with tokens from all over the picture among the kept ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.methods import register
from vtc.methods._ranks import first, ranks
from vtc.methods.prumerge import PruMerge
from vtc.tokens import VisionTokens

TRIES = 64  # steps tried at most


@register("prumerge_plus")
@dataclass(frozen=True)
class PruMergePlus(PruMerge):
    """PruMerge, but the kept tokens are every s-th one (0, s, 2 s ... below the last) and then those of largest CLS
    attention. In the paper k outliers set the step, s = int(int(n / k) / 3), about three spaced tokens for each; here s
    is the least step whose least k, spaced tokens included, fits the budget.

    LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models, arXiv 2403.15388. Departs from the
    paper: as prumerge; the same set as the authors' where the budget is their count.
    """

    name: ClassVar[str] = "prumerge_plus"

    def order(self, attention: Tensor, tokens: VisionTokens, keep: list[int]) -> Tensor:
        room = [k - (1 < k < n) for k, n in zip(keep, tokens.count, strict=True)]
        wanted = spaced(ranks(attention, tokens), tokens.count, room) & ~attention.isnan()
        return first(wanted, attention, tokens)


def spaced(rank: Tensor, count: list[int], room: list[int]) -> Tensor:
    """``[I, N]``: the spaced tokens of each picture, given the ``rank [I, N]`` of its tokens by attention."""
    low = [max(1, -(-(n - 1) // max(1, m))) for n, m in zip(count, room, strict=True)]
    high = [_fits(n, m, s) for n, m, s in zip(count, room, low, strict=True)]
    n, m, low_, high_ = torch.tensor([count, room, low, high], device=rank.device)[..., None]
    index = torch.arange(rank.shape[1], device=rank.device)
    step = high_
    for more in reversed(range(min(TRIES, max(b - a for a, b in zip(low, high, strict=True))))):
        finer = (low_ + more).minimum(high_)
        taken = (index % finer == 0) & (index < n - 1)
        union = taken | (rank < n // (3 * finer + 3) + 1)
        step = finer.where(union.sum(1, keepdim=True) <= m, step)
    return (index % step == 0) & (index < n - 1) & (m > 1)


def _fits(count: int, room: int, step: int) -> int:
    """The first step from ``step`` on at which the spaced tokens and the outliers fit even if they are all distinct."""
    while step < count and -(-(count - 1) // step) + count // (3 * step + 3) + 1 > room:
        step += 1
    return step
