"""ToMe inside a tower: each block runs on groups of tokens, merges some more between attention and MLP, and hands on
states of full length, in which the tokens of a group are alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from vtc.errors import UnsupportedModel
from vtc.groups import Groups, merge_groups, merge_values
from vtc.models.blocks import Block

ATTRIBUTE = "_vtc_groups"
Plan = Callable[[int, Groups], list[int]]  # (block, groups that enter it) -> how many of each sequence merge away


class MergingBlock:
    """In place of one block's forward. ``prefix``: leading tokens that never merge (class, registers)."""

    def __init__(self, block: Block, index: int, prefix: int, plan: Plan):
        self.block, self.index, self.prefix, self.plan = block, index, prefix, plan
        self.metric: Tensor | None = None

    def hear(self, keys: Tensor) -> None:
        """The keys ``[T, heads, t, d]`` of the attention that runs: their mean over heads says what is alike."""
        self.metric = keys.detach().mean(dim=1)

    def __call__(self, states: Tensor) -> Tensor:
        groups = groups_of(states, self.index)
        values = self.block.attend(groups.shrink(states), groups.log_size(states.dtype))
        metric, self.metric = self.metric, None
        away = self.plan(self.index, groups)
        if any(away):
            before = groups
            groups, slot = merge_groups(before, metric, away, self.prefix)  # type: ignore[arg-type]
            values = merge_values(values, slot, before, groups)
        return carry(groups.spread(self.block.feed(values)), groups)


def groups_of(states: Tensor, index: int) -> Groups:
    """The groups that stand in the ``states [T, n, D]`` entering block ``index``."""
    if index == 0:
        return Groups.alone(states)
    groups: Any = getattr(states, ATTRIBUTE, None)
    if groups is None:
        raise UnsupportedModel(
            f"the states between blocks {index - 1} and {index} were replaced, so which tokens merged is no longer "
            "known; take away what replaces them, and run gradient checkpointing with use_reentrant=False"
        )
    return groups


def carry(states: Tensor, groups: Groups) -> Tensor:
    """Groups ride on the states they describe: a replay for a gradient then finds its own."""
    setattr(states, ATTRIBUTE, groups)
    return states


def at_most(away: int, count: list[int], prefix: int) -> list[int]:
    """``away`` groups of each sequence, or as many as one round can merge."""
    return [max(0, min(away, (n - prefix) // 2)) for n in count]


def towards(goal: list[int], groups: Groups, prefix: int, blocks: int) -> list[int]:
    """How many merge now to come to ``goal[i]`` groups in ``blocks`` blocks, this one included, evenly."""
    wanted = [max(0, -(-(n - g) // max(1, blocks))) for n, g in zip(groups.count, goal, strict=True)]
    return [min(r, (n - prefix) // 2) for r, n in zip(wanted, groups.count, strict=True)]
