"""PruneVid's merging: scenes by clustering frames, then clusters of what stands still in a scene, and of what moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.kernels.match import unit
from vtc.kernels.merge import merge
from vtc.methods import register
from vtc.methods._frames import check_options, comparable, earlier, group_mean, group_size, ranked, runs
from vtc.methods._parts import cluster, spend, split
from vtc.methods._ranks import portion
from vtc.methods.base import Method
from vtc.signals.base import Signal
from vtc.tokens import Reduction, VisionTokens

NEIGHBOURS = 7  # of the density of frames and of tokens
SMALL = 14  # tokens of a part that the authors do not cluster


@register("prunevid")
@dataclass(frozen=True)
class PruneVid(Method):
    """Frames, as means of their tokens, are clustered around ``scenes`` times their number of density peaks, and runs
    of frames of one cluster are scenes: of each cluster the longest runs, other frames joining the longer neighbour. In
    a scene a place stands still if the mean cosine of its tokens over all pairs of frames is above ``alike``; it counts
    as one token, their mean. What stands still in a scene, and what moves in each frame, is clustered around density
    peaks; a token of the result is the mean of its cluster and stands at its peak.

    Parts of up to 14 tokens are clustered last; where more slots are left than that, tokens least like the first of
    their place stand alone again. A token with a NaN, or without a place, ranks last.

    PruneVid: Visual Token Pruning for Efficient Video Large Language Models, arXiv 2412.16117. Departs from the paper:
    only what is done before the language model; all parts keep the same share, whatever meets the budget (there: half);
    a part whose share is below one token is dropped; in a scene of one frame everything moves (there: rounding
    decides); a merged token stands at its first frame.
    """

    name: ClassVar[str] = "prunevid"
    gridded: ClassVar[bool] = True
    paper: ClassVar[str] = "PruneVid: Visual Token Pruning for Efficient Video Large Language Models, arXiv 2412.16117"
    variants: ClassVar[str] = "a still picture is one frame, in which everything moves"
    trains: ClassVar[bool] = True

    scenes: float = 0.25
    alike: float = 0.8

    def __post_init__(self) -> None:
        check_options(self.name, self, shares=("scenes", "alike"))
        super().__post_init__()

    @torch.no_grad()
    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        index = torch.arange(tokens.row.shape[1], device=tokens.row.device)
        frame = tokens.grid[..., 0].where(comparable(self.name, tokens), -1)
        frames = max(1, int(frame.max()) + 1)
        begin, still = self.standing(tokens, frame, frames)
        head, part = split(tokens, frame, begin, still, frames)
        rank, size = ranked(torch.zeros_like(tokens.size), part)
        kept, quota = spend(tokens, head, part, (rank + 1) / size - (size <= SMALL).long(), keep, frames)

        alone = kept & (part < 0)
        head = head.where(~alone, index)
        merged = group_mean(tokens.features, head, len(index))
        leader = cluster(merged, part, quota, NEIGHBOURS).where(part >= 0, index.where(kept, -1))
        return Reduction.join(leader.gather(1, head.clamp(min=0)).where(head >= 0, -1), max(keep))

    def standing(self, tokens: VisionTokens, frame: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """``[I, N]`` each: the first frame of each token's scene, and whether its place stands still in it."""
        looks = group_mean(tokens.features, frame, frames)
        there = group_size(frame, frames) > 0
        number = there.sum(dim=1, keepdim=True)
        wanted = portion(number, self.scenes).clamp(min=1)
        label = refined(cluster(looks, there.long() - 1, wanted, NEIGHBOURS))
        begin, end = (edge.gather(1, frame.clamp(min=0)) for edge in runs(changes(label) | ~there))

        first = earlier(tokens, frame - begin, frame >= 0)
        direction, times = unit(tokens.features), end - begin + 1
        total = merge(direction, first, torch.ones_like(direction[..., 0]), tokens.size, frame.shape[1]).square().sum(2)
        cosine = (total - group_size(first, frame.shape[1])) / (times * (times - 1))
        everywhere = group_size(first, frame.shape[1]) == times
        still = (everywhere & (times > 1) & (cosine > self.alike)).gather(1, first.clamp(min=0))
        return begin, still & (first >= 0)


def changes(label: Tensor) -> Tensor:
    """``[I, F]``: the frames that begin a run of one label."""
    return torch.cat([torch.ones_like(label[:, :1], dtype=torch.bool), label[:, 1:] != label[:, :-1]], dim=1)


def refined(label: Tensor) -> Tensor:
    """``[I, F]``: labels (of F; -1 = no frame) after the shorter runs of each label were given to the longer of their
    two neighbours, the left one of equals, 0 where there is none. A label without two frames in a row has no runs."""
    first, last = runs(changes(label))
    length, mine = (last - first + 1).masked_fill(label < 0, 0), label.clamp(min=0)
    longest = torch.zeros_like(label).scatter_reduce(1, mine, length, "amax").gather(1, mine)
    stays = (length == longest) & (length > 1)

    end, index = label.shape[1], torch.arange(label.shape[1], device=label.device).expand_as(label)
    ahead = index.where(stays, end).flip(1).cummin(dim=1).values.flip(1)  # where the next staying run is
    right, right_length = (torch.nn.functional.pad(of, (0, 1)).gather(1, ahead) for of in (label, length))
    left, left_length, out = torch.zeros_like(label[:, 0]), torch.zeros_like(label[:, 0]), []
    for now in range(end):
        longer = torch.where(left_length >= right_length[:, now], left, right[:, now])
        chosen = torch.where(stays[:, now], label[:, now], longer)
        left, left_length = chosen, torch.where(chosen == left, left_length, 0) + 1
        out.append(chosen)
    return torch.stack(out, dim=1)
