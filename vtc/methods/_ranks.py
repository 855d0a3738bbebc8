"""Orders of a picture's tokens that methods with quotas share. Ties go to the lower index, NaN ranks last."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from vtc.tokens import VisionTokens, top


def portion(count: Tensor, share: float) -> Tensor:
    """``share`` of whole numbers, rounded down. The share is the fraction it was written as (0.29 of 100 is 29, and not
    28 as in the authors' floats), so that nothing rounds, on any device; at the methods' defaults, 0.25, 0.4 and 0.5,
    both are the same."""
    exact = Fraction(share).limit_denominator(10**6)
    return count * exact.numerator // exact.denominator


def first(wanted: Tensor, score: Tensor, tokens: VisionTokens) -> Tensor:
    """``[I, N]``: the tokens that are ``wanted [I, N]`` before the others, both by ``score [I, N]``; -1 padded."""
    order = top(score, tokens.count, tokens.valid)
    late = (~wanted).gather(1, order.clamp(min=0)).to(torch.uint8).masked_fill(order < 0, 2)
    return order.gather(1, late.argsort(dim=1, stable=True))


def ranks(score: Tensor, tokens: VisionTokens) -> Tensor:
    """``[I, N]``: the place of each token in the order of ``score [I, N]``, 0 = best; N in padding."""
    order = top(score, tokens.count, tokens.valid)
    wide = score.shape[1]
    place = torch.arange(order.shape[1], device=order.device).expand_as(order)
    spare = torch.full((len(order), wide + 1), wide, device=order.device)
    return spare.scatter_(1, order.where(order >= 0, wide), place)[:, :wide].where(tokens.valid, wide)


def ranks_within(group: Tensor, score: Tensor, tokens: VisionTokens) -> Tensor:
    """``[I, N]``: the place of each token among those of its ``group [I, N]`` (int >= 0) by ``score``, 0 = best; N in
    padding."""
    rank, last = ranks(score, tokens), torch.iinfo(torch.int64).max
    order = rank.argsort(dim=1, stable=True)
    member = group.where(tokens.valid, last).gather(1, order)
    by_group = member.argsort(dim=1, stable=True)
    order, member = order.gather(1, by_group), member.gather(1, by_group)
    place = torch.arange(order.shape[1], device=order.device) - torch.searchsorted(member, member)
    return torch.empty_like(order).scatter_(1, order, place).where(tokens.valid, order.shape[1])
