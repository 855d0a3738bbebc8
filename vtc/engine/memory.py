"""Candidates that are no keys now and stay in the cache: a later turn chooses anew of them and of those that are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vtc.engine.rows import Columns, taken
from vtc.tokens import scatter_valid

SPARED, HIDDEN = 8, 16  # keys, and candidates a key, from which on one key stands for all that are none


def has_mean(keys, count):
    """Whether one of a prompt's ``keys`` is the mean of those of its ``count`` candidates that are none: where a key
    can be spared for it, or nearly all of the picture would be out of sight. Of ints or of tensors."""
    return (keys > 1) & (keys < count) & ((keys >= SPARED) | (count >= HIDDEN * keys))


@dataclass(frozen=True)
class Quota:
    """keys, count ``[B]``: how many of how many candidates of each prompt are keys of a layer. No prompt has more than
    ``most`` of them besides their mean, or more than ``left`` candidates beyond its keys; mean: some prompt may have
    one."""

    keys: Tensor
    count: Tensor
    most: int
    left: int
    mean: bool

    @classmethod
    def of(cls, keys: list[int], count: list[int], device: torch.device) -> Quota:
        means = list(map(has_mean, keys, count))
        most = max(k - mean for k, mean in zip(keys, means, strict=True))
        left = max(n - k for k, n in zip(keys, count, strict=True))
        return cls(torch.tensor(keys).to(device), torch.tensor(count).to(device), most, left, any(means))

    def __add__(self, other: Quota) -> Quota:
        if not other.most:  # no candidates
            return self
        keys, count = self.keys + other.keys, self.count + other.count
        return Quota(keys, count, self.most + other.most + 1, self.left + other.left, True)

    @property
    def with_mean(self) -> Tensor:
        """``[B]`` bool."""
        return has_mean(self.keys, self.count)

    def each(self, change: Callable[[Tensor], Tensor]) -> Quota:
        return replace(self, keys=change(self.keys), count=change(self.count))


@dataclass(frozen=True)
class Stored:
    """Keys and values ``[B, Hk, M, d]`` that stand for these columns ``[B, M]``."""

    columns: Columns
    keys: Tensor
    values: Tensor

    def then(self, other: Stored) -> Stored:
        pairs = (self.keys, other.keys), (self.values, other.values)
        return Stored(self.columns.then(other.columns), *(torch.cat(pair, dim=2) for pair in pairs))

    def at(self, place: Tensor) -> Stored:
        """Those at ``place [B, K]``."""
        columns = self.columns.each(lambda t: t.gather(1, place))
        return Stored(columns, taken(self.keys, place), taken(self.values, place))

    def each(self, change: Callable[[Tensor], Tensor]) -> Stored:
        return Stored(self.columns.each(change), change(self.keys), change(self.values))


@dataclass(frozen=True)
class Memory:
    """others: the candidates that are no keys. at ``[B, W]``: where those that are stand among the kept columns of the
    layer, the first ``chosen`` of them (fillers included), and then their means."""

    others: Stored
    at: Tensor
    chosen: int
    quota: Quota

    def each(self, change: Callable[[Tensor], Tensor]) -> Memory:
        """The same change of the prompts, applied to every tensor."""
        return Memory(self.others.each(change), change(self.at), self.chosen, self.quota.each(change))

    def apart(self, held: Stored) -> tuple[Stored, Stored]:
        """What a layer holds without the picture, and all candidates."""
        picture = torch.zeros_like(held.columns.index, dtype=torch.uint8).scatter(1, self.at, 1)
        text = picture.argsort(dim=1, stable=True)[:, : picture.shape[1] - self.at.shape[1]]
        return held.at(text), held.at(self.at[:, : self.chosen]).then(self.others)


def without(candidates: Stored, chosen: Tensor, most: int) -> Stored:
    """Those that ``chosen [B, K]`` (-1 padded) does not name, at most ``most`` a prompt."""
    index = candidates.columns.index
    there = torch.ones_like(index, dtype=torch.bool)
    there = there if candidates.columns.valid is None else candidates.columns.valid
    left = scatter_valid(there, chosen, torch.zeros_like(chosen))
    place = left.int().argsort(dim=1, descending=True, stable=True)[:, :most]
    rest, valid = candidates.at(place), left.gather(1, place)
    sizes = torch.zeros(place.shape, device=place.device) if rest.columns.log_size is None else rest.columns.log_size
    return Stored(Columns(rest.columns.index, valid, sizes.masked_fill(~valid, -torch.inf)), rest.keys, rest.values)
