"""FastVID: segments of alike frames, salient tokens of every frame, and merged ones for the segments' context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.kernels.match import unit
from vtc.methods import register
from vtc.methods._density import closest, peaks
from vtc.methods._frames import check_options, comparable, group_mean, group_size, ranked, runs
from vtc.methods._ranks import portion
from vtc.methods.base import Method
from vtc.signals.base import Signal
from vtc.signals.tower_attention import TowerAttention
from vtc.tokens import Reduction, VisionTokens

NEIGHBOURS = 4  # of a token's density


@register("fastvid")
@dataclass(frozen=True)
class FastVID(Method):
    """A video is cut into segments where neighbouring frames are least alike: at the ``segments - 1`` lowest cosines
    and at every one below ``alike``. Each frame keeps the tokens the tower looks at most. The share ``context`` of the
    budget goes to anchor frames (of each segment the last, and every ``stride``-th before it), whose density peaks are
    centres. In each anchor frame every other token of the segment joins the centre of largest cosine; with c tokens, of
    which it is one, a centre becomes ``w * centre + (1 - w) * their mean``, ``w = max(own, 1 / (c + 1))``.

    Where an anchor frame has fewer tokens than its part of the budget, the tokens looked at next most fill it, in every
    frame alike. A still picture is one frame. A token with a NaN, or without a place, ranks last.

    FastVID: Dynamic Density Pruning for Fast Video Large Language Models, arXiv 2503.11187. Departs from the paper:
    frames are compared by the mean of their tokens (there: the tower's pooled vector); attention is that of the layer
    LLaVA reads (there: the last one's pooling head); centres are shared out so that the budget is kept exactly.
    """

    name: ClassVar[str] = "fastvid"
    gridded: ClassVar[bool] = True
    paper: ClassVar[str] = "FastVID: Dynamic Density Pruning for Fast Video Large Language Models, arXiv 2503.11187"
    variants: ClassVar[str] = (
        "a still picture is one segment of one frame; without a CLS token: mean attention received"
    )
    trains: ClassVar[bool] = True

    context: float = 0.4
    segments: int = 8
    alike: float = 0.9
    stride: int = 4
    own: float = 0.6

    def __post_init__(self) -> None:
        check_options(self.name, self, shares=("context", "alike", "own"), counts=("segments", "stride"))
        super().__post_init__()

    def signals(self, stage: int) -> tuple[Signal, ...]:
        return (TowerAttention(-2),)

    @torch.no_grad()
    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        frame = tokens.grid[..., 0].where(comparable(self.name, tokens), -1)
        looks = group_mean(tokens.features, frame, max(1, int(frame.max()) + 1))
        return self.compress(tokens, signals[TowerAttention(-2)], frame, looks, keep)

    def compress(
        self, tokens: VisionTokens, attention: Tensor, frame: Tensor, looks: Tensor, keep: list[int]
    ) -> Reduction:
        """``frame [I, N]`` of each token, -1 = left out; ``looks [I, F, G]``: what each frame looks like."""
        x, there = tokens.features, frame.clamp(min=0)
        count = group_size(frame, looks.shape[1])
        start, end = self.bounds(looks, count)
        salient, peaked = (part.gather(1, there) for part in self.quotas(count, start, end, keep))
        segment = end.gather(1, there).where(frame >= 0, -1)
        back = end.gather(1, there) - there  # frames to the end of the segment

        rank, size = ranked(attention, frame)
        rest = (frame >= 0) & (rank >= salient)
        among = frame.where(rest, -1)
        place, _ = ranked(peaks(x, among.where(peaked > 0, -1), NEIGHBOURS), among)
        centre = rest & (place < peaked)
        turn = (rank / size).masked_fill(centre, -1).masked_fill(~rest, -2).where(frame >= 0, torch.nan)
        kept = Reduction.top(-turn, keep, tokens)

        joins = segment.where(centre | rest & (kept.slot < 0), -1)
        alone = (kept.slot >= 0) & (joins < 0)
        direction, also = unit(x), []
        index = torch.arange(x.shape[1], device=x.device).expand_as(segment)
        slot, weight = kept.slot.where(alone, -1), alone.to(direction.dtype)
        for anchor in range(int((end - start).max()) // self.stride + 1):
            centres = segment.where(centre & (back == anchor * self.stride), -1)
            into, part = self.mixed(direction, joins, centres, kept)
            first = (joins >= 0) & (back // self.stride == anchor)  # a token's size counts in its own stretch of frames
            slot, weight = into.where(first, slot), part.where(first, weight)
            also.append((index, into.masked_fill(first, -1), part))
        return Reduction(slot, kept.anchor, weight, also=tuple(also) if len(also) > 1 else ())

    def bounds(self, looks: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """``[I, F]`` each: first and last frame of every frame's segment."""
        index = torch.arange(count.shape[1], device=count.device).expand_as(count)
        frames = (index * (count > 0)).amax(dim=1, keepdim=True)
        direction = unit(looks)
        alike = (direction * direction.roll(-1, dims=1)).sum(dim=2)
        inside = index < frames
        rank, _ = ranked(-alike, inside.long())
        return runs((~inside | (rank < self.segments - 1) | (alike < self.alike)).roll(1, dims=1))

    def quotas(self, count: Tensor, start: Tensor, end: Tensor, keep: list[int]) -> tuple[Tensor, Tensor]:
        """``[I, F]`` each: salient tokens of every frame, and centres of every anchor frame (0 in others)."""
        wanted = torch.tensor(keep, device=count.device)[:, None]
        total = count.sum(dim=1, keepdim=True).clamp(min=1)
        budget = (wanted * count // total).minimum(count)
        salient = budget - portion(budget, self.context)
        spare = (wanted - salient.sum(dim=1, keepdim=True)).clamp(min=0)
        until = torch.nn.functional.pad(spare * count.cumsum(dim=1) // total, (1, 0))
        quota = until.gather(1, end + 1) - until.gather(1, start)
        back = end - torch.arange(count.shape[1], device=count.device)
        turn, anchors = back // self.stride, (end - start) // self.stride + 1
        centres = quota * (turn + 1) // anchors - quota * turn // anchors
        return salient, centres.where(back % self.stride == 0, 0).minimum(count - salient)

    def mixed(self, direction: Tensor, joins: Tensor, centres: Tensor, kept: Reduction) -> tuple[Tensor, Tensor]:
        """``[I, N]`` each: the slot of the centre of largest cosine for each token that joins (a centre: its own), else
        -1, and its weight there."""
        index = torch.arange(joins.shape[1], device=joins.device)
        near = index.where(centres >= 0, closest(direction, joins, centres))
        slot = kept.slot.gather(1, near.clamp(min=0)).where(near >= 0, -1)
        members = group_size(slot, kept.anchor.shape[1]).gather(1, slot.clamp(min=0)).clamp(min=1)
        own = (1 / (members.to(direction.dtype) + 1)).clamp(min=self.own)
        weight = ((1 - own) / members + own.where(centres >= 0, 0)).masked_fill(members == 1, 1.0)
        return slot, weight.masked_fill(slot < 0, 0)
