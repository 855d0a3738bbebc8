"""ToMe inside a tower: each block runs on groups of tokens, merges some more between attention and MLP, and hands on
states of full length, in which the tokens of a group are alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtc.errors import UnsupportedModel
from vtc.towers.blocks import Block
from vtc.towers.groups import Groups, merge_groups, merge_values
from vtc.towers.units import Units

ATTRIBUTE = "_vtc_groups"


@dataclass(frozen=True)
class Plan:
    """What merges in a tower, and ``away(block, groups that enter it)``: how many of each sequence merge there."""

    away: Callable[[int, Groups], list[int]]
    units: Units = Units()


class MergingBlock:
    """In place of one block's forward. ``prefix``: leading tokens that never merge (class, registers); ``start`` makes
    the plan for states that enter the first block; ``left`` is told of the groups that leave this one."""

    def __init__(
        self,
        block: Block,
        index: int,
        prefix: int,
        start: Callable[[Tensor], Plan],
        left: Callable[[int, Groups], None],
    ):
        self.block, self.index, self.prefix = block, index, prefix
        self.start, self.left = start, left
        self.keys: list[Tensor] = []

    def capture(self, keys: Tensor) -> None:
        """The keys ``[T, heads, t, d]`` of the attention that runs, or of the next of its stretches."""
        self.keys.append(keys.detach())

    def capture_attention(self, q: Tensor, k: Tensor, mask: Any, scale: float) -> None:
        """As a hook on attention."""
        self.capture(k)

    def __call__(self, states: Tensor, **kwargs: Any) -> Tensor:
        groups, plan = self.riding(states)
        units, self.keys = plan.units, []
        log_size = units.log_size(groups, states.dtype)
        rows = self.block.attend(units.shrink(states, groups), log_size, **units.arguments(kwargs, groups))
        keys, self.keys = self.keys, []
        away = plan.away(self.index, groups)
        if any(away) and keys:
            before = groups
            groups, slot = merge_groups(before, units.values(alike(keys), before), away, self.prefix)
            rows = units.rows(merge_values(units.values(rows, before), slot, before, groups), groups)
        self.left(self.index, groups)
        return ride(units.spread(self.block.feed(rows), groups), groups, plan, self.index + 1)

    def riding(self, states: Tensor) -> tuple[Groups, Plan]:
        """The groups that stand in the ``states [T, n, D]`` entering this block, and the plan they follow."""
        index, *riding = getattr(states, ATTRIBUTE, (None,))
        if index == self.index:
            return riding[0], riding[1]
        if self.index:
            raise UnsupportedModel(
                f"the states entering block {self.index} are not those that left block {self.index - 1}, so which "
                "tokens merged is not known; take away what replaces them or skips blocks, and run gradient "
                "checkpointing with use_reentrant=False"
            )
        plan = self.start(states)
        groups = plan.units.alone(states)
        ride(states, groups, plan, 0)
        return groups, plan


def alike(keys: list[Tensor]) -> Tensor:
    """``[T, t, d]``: what says which rows are alike, the mean over heads of their ``keys [T, heads, t, d]``."""
    return keys[0].mean(dim=1) if len(keys) == 1 else torch.cat([k.mean(dim=1) for k in keys], dim=1)


def ride(states: Tensor, groups: Groups, plan: Plan, index: int) -> Tensor:
    """Groups and plan ride on the states that enter block ``index``: a replay for a gradient then finds its own."""
    setattr(states, ATTRIBUTE, (index, groups, plan))
    return states


def at_most(away: int, groups: Groups, prefix: int) -> list[int]:
    """``away`` groups of each sequence, or as many as one round can merge."""
    return [max(0, min(away, (n - prefix) // 2)) for n in groups.count]


def towards(goal: list[int], groups: Groups, prefix: int, blocks: int) -> list[int]:
    """How many merge now to come to ``goal[i]`` groups in ``blocks`` blocks, this one included: evenly, but no fewer
    than leaves the goal in reach of blocks that halve the groups at most."""
    away = []
    for n, g in zip(groups.count, goal, strict=True):
        reach = prefix + (g - prefix) * 2 ** (blocks - 1)
        away.append(max(0, min(max(-(-(n - g) // blocks), n - reach), (n - prefix) // 2)))
    return away
