"""ToMe: tokens that are alike merge inside the vision tower, some in every block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.methods import register
from vtc.methods.base import Method
from vtc.methods.bipartite import leaders
from vtc.signals.base import Signal
from vtc.signals.tower_groups import TowerGroups
from vtc.tokens import Reduction, VisionTokens, scatter_valid, top


@register("tome")
@dataclass(frozen=True)
class ToMe(Method):
    """In every block, between attention and MLP, the ``r`` tokens most alike to another merge into it: tokens are dealt
    alternately to two sides, each of the first side is linked to the one of largest cosine on the second (keys, mean
    over heads), and the best r links merge, by size-weighted mean. Tokens of size s weigh s in attention (log s is
    added to their logits). Class, distillation and register tokens take no part.

    In a VLM this goes on, evenly, until the budget's groups are left where the tower's last features are read; at the
    decoder's input each group is one slot, at its first token. Few blocks cannot come down to a small budget: the
    same matching, of features, then goes on there.

    Where a token is a block of patches (2 x 2 merging, pixel shuffle, pooling), whole blocks merge, patch by patch: top
    left with top left. What is alike are then their patches' keys side by side; a merged block stands where the one it
    merged into stood.

    ``r`` (plain ViTs): one number for all blocks; a list, one for each (blocks past its end merge none); or a pair
    ``(r, inflect)``: r on average, from ``r (1 - inflect)`` in the first block to ``r (1 + inflect)`` in the last.
    None: merge evenly until ``budget`` patches are left.

    Token Merging: Your ViT But Faster, arXiv 2210.09461. Departs from the paper: after each block every token gets its
    group's value back, so what follows the tower sees the length and order it knows, and an average over tokens
    weighs groups by size; registers are protected as the class token is. Towers that pack what they see into one
    sequence merge within a frame, and those with window attention (Qwen2.5-VL) within a window in every block, so that
    no group ever stands in two; their keys are those that attention uses, with their rotary positions. Of a picture in
    tiles with an entry each (InternVL, Idefics3), the budget of tokens counts for every tile inside the tower, which
    can not know which belong together, and for the picture only at the decoder's input.
    """

    name: ClassVar[str] = "tome"
    paper: ClassVar[str] = "Token Merging: Your ViT But Faster, arXiv 2210.09461"
    variants: ClassVar[str] = "plain ViTs of timm: r tokens merge in each block, whatever the budget"
    trains: ClassVar[bool] = True

    r: int | tuple[int | float, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.r, list):  # frozen, so a tuple; a pair would be a schedule, and a third 0 changes nothing
            object.__setattr__(self, "r", (*self.r, 0) if len(self.r) == 2 else tuple(self.r))
        *rates, inflect = self.r if is_pair(self.r) else (*listed(self.r), 0)  # type: ignore[misc]
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in rates):
            raise ValueError(f"tome: r={self.r!r}; give an int >= 0, a list of them, or a pair (r, inflect)")
        if isinstance(inflect, bool) or not isinstance(inflect, (int, float)) or not -1 <= inflect <= 1:
            raise ValueError(f"tome: inflect {inflect!r} is not in [-1, 1]; 1 merges ever more, -1 ever less, 0 evenly")
        super().__post_init__()

    def signals(self, stage: int) -> tuple[Signal, ...]:
        if self.r is not None:
            raise ValueError(f"tome: r={self.r!r} is for plain ViTs; in a vision-language model give a budget instead")
        return (TowerGroups(),)

    @torch.no_grad()
    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        leader, count = split_groups(signals[TowerGroups()], tokens, keep)
        return Reduction.join(leaders(leader, tokens, count, keep), max(keep))

    def rates(self, blocks: int) -> list[int] | None:
        """How many tokens merge in each block; None: the budget says."""
        if self.r is None:
            return None
        if isinstance(self.r, tuple) and not is_pair(self.r):
            return [*map(int, self.r[:blocks]), *[0] * (blocks - len(self.r))]
        r, inflect = self.r if isinstance(self.r, tuple) else (self.r, 0)
        first = int(r * (1.0 - inflect))
        step = (2 * r - 2 * first) / max(1, blocks - 1)
        return [int(first + step * i) for i in range(blocks)]


def listed(r: object) -> tuple:
    return r if isinstance(r, tuple) else () if r is None else (r,)


def is_pair(r: object) -> bool:
    return isinstance(r, tuple) and len(r) == 2


def split_groups(group: Tensor, tokens: VisionTokens, keep: list[int]) -> tuple[Tensor, list[int]]:
    """The leader ``[I, N]`` of each token, the first of its ``group [I, N]`` (-1 in padding), and how many leaders each
    picture has: one a group, or ``keep[i]`` where these are more. The groups with the most tokens for each leader then
    get more of them, at no loss, for the tokens of a group are alike."""
    index = torch.arange(group.shape[1], device=group.device).expand_as(group)
    member = torch.where(tokens.valid, group, group.amax() + 1)
    ordered, order = member.sort(dim=1, stable=True)
    begins = torch.ones_like(tokens.valid)
    begins[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    begin = index.where(begins, 0).cummax(dim=1).values
    size = torch.zeros_like(index).scatter_add_(1, begin, torch.ones_like(index)).gather(1, begin)
    priority = (size / (index - begin)).where(~begins, torch.inf)  # of the m-th token of a group after its first
    leader = torch.empty_like(index).scatter_(1, order, order.gather(1, begin))
    priority = torch.empty_like(priority).scatter_(1, order, priority)
    groups = ((leader == index) & tokens.valid).sum(dim=1).tolist()
    count = [max(n, k) for n, k in zip(groups, keep, strict=True)]
    leads = scatter_valid(torch.zeros_like(tokens.valid), top(priority, count, tokens.valid), torch.ones_like(index))
    return index.where(leads, leader).where(tokens.valid, -1), count
