"""ToMe's bipartite soft matching, at the decoder's input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.kernels.match import match
from vtc.kernels.merge import merge
from vtc.methods import register
from vtc.methods.base import Method
from vtc.signals.base import Signal
from vtc.tokens import Reduction, VisionTokens


@register("bipartite")
@dataclass(frozen=True)
class Bipartite(Method):
    """Merge the most alike tokens, size-weighted, in rounds until ``keep[i]`` are left.

    Each round deals the tokens alternately to two sides, links every token of the first side to the one of largest
    cosine on the second, and merges along the best links, at most half of the tokens a round. A merged token stands
    where its token of the second side stood. A token with a NaN is merged last.

    Token Merging: Your ViT But Faster, arXiv 2210.09461. Departs from the paper: runs once, before the language model,
    on the projected features (the paper: in every tower layer, on attention keys); weighting attention by size is
    ``share=True``.
    """

    name: ClassVar[str] = "bipartite"
    paper: ClassVar[str] = "Token Merging: Your ViT But Faster, arXiv 2210.09461"
    trains: ClassVar[bool] = True

    @torch.no_grad()
    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        index = torch.arange(tokens.row.shape[1], device=tokens.row.device).expand_as(tokens.row)
        return Reduction.join(leaders(index.where(tokens.valid, -1), tokens, tokens.count, keep), max(keep))


def leaders(leader: Tensor, tokens: VisionTokens, count: list[int], keep: list[int]) -> Tensor:
    """``[I, N]``: the leader of each token's group (-1 in padding) once rounds have merged the ``count[i]`` groups of
    each picture, given by their ``leader [I, N]``, until ``keep[i]`` (or fewer, where there were) are left."""
    start = Reduction.join(leader, max(count))
    features = tokens.features if tokens.features.dtype == torch.float64 else tokens.features.float()
    left, head, owner = count, start.anchor.clamp(min=0), start.slot  # of each group its token, of each token its group
    features, size = merge(features, owner, None, tokens.size, max(count)), start.sizes(tokens)
    while any(away := [min(max(n - k, 0), n // 2) for n, k in zip(left, keep, strict=True)]):
        group, stays = bipartite_round(features, left, away)
        left = [n - r for n, r in zip(left, away, strict=True)]
        features = merge(features, group, None, size, max(left))
        size = merge(size[..., None], group, torch.ones_like(size), size, max(left))[..., 0]
        head = head.gather(1, stays)
        owner = group.gather(1, owner.clamp(min=0)).where(owner >= 0, -1)
    return head.gather(1, owner.clamp(min=0)).where(owner >= 0, -1)


def bipartite_round(metric: Tensor, count: list[int], away: list[int], prefix: int = 0) -> tuple[Tensor, Tensor]:
    """One round on ``metric [I, t, d]``, of which the first ``count[i]`` are there: ``away[i]`` of the even tokens each
    merge into an odd one. ``away[i] <= (count[i] - prefix) // 2``: the first ``prefix`` tokens (class, registers) take
    no part.

    Returns group ``[I, t]``, the output token each token is in (-1 in padding), and head ``[I, max(count - away)]``,
    the token whose place each output token takes. Output order: the prefix, the even tokens that stay, best linked
    first (with a prefix: in their order), then the odd ones.
    """
    index = torch.arange(metric.shape[1], device=metric.device)
    valid = index < torch.tensor(count, device=metric.device)[:, None]
    evens, odds = (valid & (index >= prefix))[:, ::2], (valid & (index >= prefix))[:, 1::2]
    r = torch.tensor(away, device=metric.device)[:, None]
    to, cosine = match(metric[:, ::2], metric[:, 1::2], odds)
    link = cosine.clamp(min=-2).masked_fill(~evens, -3)  # those without a match (NaN) before those that take no part
    rank = link.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    leaves = evens & (rank < r)
    stay = (~leaves).cumsum(1) - 1 + prefix // 2 if prefix else rank - r
    odd = valid[:, ::2].sum(1, keepdim=True) - r + index[: metric.shape[1] // 2]
    group = torch.empty(valid.shape, dtype=torch.int64, device=metric.device)
    group[:, 1::2] = odd
    group[:, ::2] = torch.where(leaves, odd.gather(1, to.clamp(min=prefix // 2)), stay)  # -1: a NaN, with no match
    group = group.where(index >= prefix, index).where(valid, -1)
    stays = valid.clone()
    stays[:, ::2] &= ~leaves
    wide = max(n - m for n, m in zip(count, away, strict=True))
    spare = torch.zeros(len(count), wide + 1, dtype=torch.int64, device=metric.device)
    return group, spare.scatter_(1, group.where(stays, wide), index.expand_as(group))[:, :wide]
