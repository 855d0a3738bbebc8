"""Groups of merged tokens: the states shrink to one row a group, and every token can have its group's value back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.kernels.merge import merge
from vtc.methods.bipartite import bipartite_round


@dataclass(frozen=True, eq=False)
class Groups:
    """Which of the n tokens of T sequences stand together, in ``count[i] <= g`` groups each.

    owner ``[T, n]`` int: the group each token is in, -1 = no token (padding); head ``[T, g]`` int: one token of each
    group; size ``[T, g]`` float: how many tokens it has, 0 = no group (padding); merged: False promises that every
    token is alone.
    """

    owner: Tensor
    head: Tensor
    size: Tensor
    count: list[int]
    merged: bool = True

    @classmethod
    def alone(cls, states: Tensor, count: list[int] | None = None) -> Groups:
        """Every token of ``states [T, n, D]``, of which the first ``count[i]`` (all by default) are there, a group of
        its own."""
        count = [states.shape[1]] * len(states) if count is None else count
        index = torch.arange(states.shape[1], device=states.device).expand(states.shape[:2])
        there = index < torch.tensor(count, device=states.device)[:, None]
        return cls(index.where(there, -1), index, there.float(), count, merged=False)

    def log_size(self, dtype: torch.dtype) -> Tensor | None:
        """``[T, 1, 1, g]``: what each group adds to the logits of those who attend to it; None where all are alone."""
        if not self.merged:
            return None
        return self.size.to(torch.promote_types(dtype, torch.float32)).log().to(dtype)[:, None, None]

    def shrink(self, states: Tensor) -> Tensor:
        """``[T, g, D]``: the groups' values out of ``states [T, n, D]``, in which their tokens are alike."""
        return take(states, self.head) if self.merged else states

    def spread(self, values: Tensor) -> Tensor:
        """``[T, n, D]``: each token with its group's value of ``values [T, g, D]``."""
        return take(values, self.owner) if self.merged else values


def take(values: Tensor, index: Tensor) -> Tensor:
    """``[T, m, D]``: the rows ``index [T, m]`` of ``values [T, g, D]``, copied whole (a gather goes by elements)."""
    first = values.shape[1] * torch.arange(len(values), device=values.device)[:, None]
    return values.flatten(0, 1).index_select(0, (index + first).flatten()).unflatten(0, index.shape)


@torch.no_grad()
def merge_groups(groups: Groups, metric: Tensor, away: list[int], prefix: int) -> tuple[Groups, Tensor]:
    """``away[i]`` groups of sequence i merge into those most alike by ``metric [T, g, d]`` (see ``bipartite_round``).

    Returns the new groups and slot ``[T, g]``: which of them each old one is in, -1 in padding.
    """
    slot, head = bipartite_round(metric, groups.count, away, prefix)
    size = torch.zeros(head.shape, device=head.device).scatter_add_(1, slot.clamp(min=0), groups.size)
    count = [n - r for n, r in zip(groups.count, away, strict=True)]
    owner = slot.gather(1, groups.owner.clamp(min=0)).where(groups.owner >= 0, -1)
    return Groups(owner, groups.head.gather(1, head), size, count), slot


def merge_values(values: Tensor, slot: Tensor, before: Groups, after: Groups) -> Tensor:
    """``[T, g', D]``: the size-weighted means, by ``slot``, of the ``values [T, g, D]`` of the groups ``before``."""
    return merge(values, slot, None, before.size, after.size.shape[1])
