"""What merges inside a tower: single tokens, or units, the blocks of patches that later become one token.

A unit's value is its patches' values side by side, so that units merge patch by patch: top left with top left. Rows are
what a block of the tower runs on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtc.towers.groups import Groups


@dataclass(frozen=True, eq=False)
class Units:
    """Every row of ``[T, n, D]`` is a unit of its own. Values of groups are ``[T, g, W]``, W = D times a unit's rows.

    ``prefix``: leading rows that never merge (class, registers).
    """

    prefix: int = 0

    def alone(self, states: Tensor) -> Groups:
        """Every unit of the ``states`` that enter the first block a group of its own."""
        return Groups.alone(states)

    def shrink(self, states: Tensor, groups: Groups) -> Tensor:
        """The rows of the groups, out of ``states`` in which their units are alike."""
        return groups.shrink(states)

    def spread(self, rows: Tensor, groups: Groups) -> Tensor:
        """States in which each unit has its group's ``rows``."""
        return groups.spread(rows)

    def values(self, rows: Tensor, groups: Groups) -> Tensor:
        """``[T, g, W]`` of the groups' ``rows`` (padded with any values)."""
        return rows

    def rows(self, values: Tensor, groups: Groups) -> Tensor:
        """The groups' rows of their ``values [T, g, W]``."""
        return values

    def log_size(self, groups: Groups, dtype: torch.dtype) -> Tensor | None:
        """What each row adds to the logits of those who attend to it; None where nothing has merged."""
        return groups.log_size(dtype)

    def arguments(self, kwargs: dict[str, Any], groups: Groups) -> dict[str, Any]:
        """A block's further arguments, for the groups' rows."""
        return kwargs


@dataclass(frozen=True, eq=False)
class Blocks(Units):
    """Tiles of ``high * side`` by ``wide * side`` patches in reading order after the prefix: a unit is a square of
    ``side ** 2`` patches. A row of the prefix stands in all places of a unit, and counts once for all of them."""

    high: int = 1
    wide: int = 1
    side: int = 1

    def alone(self, states: Tensor) -> Groups:
        groups = Groups.alone(states[:, : self.prefix + self.high * self.wide])
        groups.size[:, : self.prefix] /= self.side**2
        return groups

    def shrink(self, states: Tensor, groups: Groups) -> Tensor:
        return self.rows(groups.shrink(self._fold(states)), groups) if groups.merged else states

    def spread(self, rows: Tensor, groups: Groups) -> Tensor:
        return self._unfold(groups.spread(self.values(rows, groups))) if groups.merged else rows

    def values(self, rows: Tensor, groups: Groups) -> Tensor:
        return rows.unflatten(1, (-1, self.side**2)).flatten(2) if groups.merged else self._fold(rows)

    def rows(self, values: Tensor, groups: Groups) -> Tensor:
        return values.unflatten(2, (self.side**2, -1)).flatten(1, 2) if groups.merged else self._unfold(values)

    def log_size(self, groups: Groups, dtype: torch.dtype) -> Tensor | None:
        one = groups.log_size(dtype)
        return None if one is None else one.repeat_interleave(self.side**2, dim=3)

    def _fold(self, states: Tensor) -> Tensor:
        first, patches = states[:, : self.prefix], states[:, self.prefix :]
        blocks = patches.unflatten(1, (self.high, self.side, self.wide, self.side)).transpose(2, 3)
        return torch.cat([first.repeat(1, 1, self.side**2), blocks.flatten(3).flatten(1, 2)], dim=1)

    def _unfold(self, values: Tensor) -> Tensor:
        first, units = values[:, : self.prefix], values[:, self.prefix :]
        blocks = units.unflatten(2, (self.side, self.side, -1)).unflatten(1, (self.high, self.wide)).transpose(2, 3)
        return torch.cat([first[..., : blocks.shape[-1]], blocks.flatten(1, 4)], dim=1)


@dataclass(frozen=True, eq=False)
class Packed(Units):
    """One sequence ``[N, D]`` of all pictures' patches, unit by unit, ``patches`` of them each.

    ``parts``: how many units each stretch has within which they merge (the T sequences of their groups); no block's
    ``cu_seqlens``, the stretches that attend to themselves, may cut one. A group stands at the place of its head.
    """

    parts: tuple[int, ...] = ()
    patches: int = 1

    def alone(self, states: Tensor) -> Groups:
        blank = states.new_zeros(len(self.parts), max(self.parts), 1)
        return Groups.alone(blank, list(self.parts))

    def shrink(self, states: Tensor, groups: Groups) -> Tensor:
        if not groups.merged:
            return states
        head = groups.head + self._starts(self.parts, states.device)[:, None]
        units = states.reshape(len(states) // self.patches, -1)
        return units.index_select(0, self._listed(head, groups.count)).view(-1, *states.shape[1:])

    def spread(self, rows: Tensor, groups: Groups) -> Tensor:
        if not groups.merged:
            return rows
        owner = groups.owner + self._starts(groups.count, rows.device)[:, None]
        units = rows.reshape(len(rows) // self.patches, -1)
        return units.index_select(0, self._listed(owner, self.parts)).view(-1, *rows.shape[1:])

    def values(self, rows: Tensor, groups: Groups) -> Tensor:
        units = rows.reshape(sum(groups.count), -1)
        count = torch.tensor(groups.count, device=rows.device)[:, None]
        place = torch.arange(max(groups.count), device=rows.device).minimum(count - 1)
        place = place + self._starts(groups.count, rows.device)[:, None]
        return units.index_select(0, place.flatten()).unflatten(0, place.shape)

    def rows(self, values: Tensor, groups: Groups) -> Tensor:
        index = torch.arange(values.shape[0] * values.shape[1], device=values.device).view(values.shape[:2])
        units = values.flatten(0, 1).index_select(0, self._listed(index, groups.count))
        return units.view(len(units) * self.patches, -1)

    def log_size(self, groups: Groups, dtype: torch.dtype) -> Tensor | None:
        """``[n]``: row by row."""
        one = groups.log_size(dtype)
        return None if one is None else self._listed(one[:, 0, 0], groups.count).repeat_interleave(self.patches)

    def arguments(self, kwargs: dict[str, Any], groups: Groups) -> dict[str, Any]:
        if not groups.merged:
            return kwargs
        given = kwargs["cu_seqlens"]
        before, after = (torch.tensor([0, *n]).cumsum(0) * self.patches for n in (self.parts, groups.count))
        edges = after[torch.searchsorted(before, given.cpu().long())].to(given)
        tables = tuple(self.shrink(table, groups) for table in kwargs["position_embeddings"])
        return {**kwargs, "cu_seqlens": edges, "position_embeddings": tables}

    @staticmethod
    def _starts(count: Any, device: torch.device) -> Tensor:
        """``[T]``: where each sequence of ``count[i]`` begins when they stand one after the other."""
        count = torch.tensor(count)
        return (count.cumsum(0) - count).to(device)

    @staticmethod
    def _listed(values: Tensor, count: Any) -> Tensor:
        """The first ``count[i]`` of each row of ``values [T, n]``, one after the other."""
        inside = torch.arange(values.shape[1]) < torch.tensor(count)[:, None]
        return values.flatten()[inside.flatten().nonzero()[:, 0].to(values.device)]
