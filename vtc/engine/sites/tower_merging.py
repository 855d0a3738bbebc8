"""ToMe inside the vision tower of a VLM: how far each picture's tokens merge; what the decoder's input is told of
it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise

from torch import Tensor

from vtc.engine.capture.attention_hook import implementation
from vtc.engine.capture.tower import TowerCapture
from vtc.errors import UnsupportedModel
from vtc.models.base import Family, TowerRun
from vtc.signals.tower_groups import TowerGroups
from vtc.towers.groups import Groups
from vtc.towers.merging import MergingBlock, Plan, towards

MASKED = ("sdpa", "eager")  # attention functions that take log sizes as a mask


class MergingTower:
    """The blocks of one modality's tower. ``keeps``: tokens of pictures -> how many of each the budget allows."""

    def __init__(self, family: Family, modality: str, tower: TowerCapture, keeps: Callable[[list[int]], list[int]]):
        self.family, self.tower, self.keeps = family, tower, keeps
        self.prefix = family.tower_cls
        self.blocks = family.tower_blocks(modality)

    def merging(self) -> list[MergingBlock]:
        """What runs in place of each block."""
        return [MergingBlock(block, n, self.prefix, self.start, self.left) for n, block in enumerate(self.blocks)]

    def start(self, states: Tensor) -> Plan:
        """Merge evenly, until the blocks whose features are read leave as many groups as the budget allows."""
        run = self.tower.running
        if run is None:  # the tower alone, not for a prompt
            return Plan(stay)
        used = implementation(self.blocks[0].attention)
        if used not in MASKED:
            raise UnsupportedModel(
                f"the vision tower attends by {used}, which takes no weights for merged tokens; "
                'call model.set_attn_implementation({"vision_config": "sdpa"})'
            )
        units = self.family.tower_units(run)
        goal = self.goals(run, units.alone(states).count)
        depth = self.family.read_blocks(run, len(self.blocks))

        def away(index: int, groups: Groups) -> list[int]:
            return towards(goal, groups, self.prefix, depth - index) if index < depth else stay(index, groups)

        return Plan(away, units)

    def goals(self, run: TowerRun, count: list[int]) -> list[int]:
        """How many groups each of the tower's sequences of ``count[i]`` ends with (prefix included in both). An entry
        counts as a picture: of tiles only the prompt knows which belong together, and it may not be known yet."""
        entries = self.family.tower_tokens(run, len(count), max(count))
        run.counts = totals = [tokens for _, tokens in entries]
        goals: list[int] = []
        for (sequences, total), keep in zip(entries, self.keeps(totals), strict=True):
            own = count[len(goals) : len(goals) + sequences]
            goals += [self.prefix + n for n in shares([n - self.prefix for n in own], keep / total)]
        return goals

    def left(self, index: int, groups: Groups) -> None:
        """After the last block: what the method asks for at the decoder's input."""
        run = self.tower.running
        if run is not None and index == len(self.blocks) - 1:
            run.captured.setdefault(TowerGroups(), []).append(groups.owner)


def shares(count: list[int], share: float) -> list[int]:
    """Of sequences of ``count[i]`` that ``share`` of each, in whole numbers of at least 1; what is rounded off one goes
    to those after it."""
    ends = [int(end * share + 1e-9) for end in accumulate(count)]
    return [max(1, end - start) for start, end in pairwise([0, *ends])]


def stay(index: int, groups: Groups) -> list[int]:
    """Nothing merges."""
    return [0] * len(groups.count)


def unmasked(merging: MergingBlock) -> Callable[..., Tensor]:
    """The forward of one of transformers' encoder layers, for whole pictures."""

    def forward(hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs) -> Tensor:
        if attention_mask is not None:
            raise UnsupportedModel("tome merges the tokens a tower's mask names; use bipartite, at the decoder's input")
        return merging(hidden_states, **kwargs)

    return forward
