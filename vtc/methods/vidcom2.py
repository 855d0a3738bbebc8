"""VidCom2: more of the frames that differ from the video, and the tokens that differ from frame and video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.kernels.match import unit
from vtc.methods import register
from vtc.methods._frames import comparable, group_mean, ranked
from vtc.methods.base import Method
from vtc.signals.base import Signal
from vtc.tokens import Reduction, VisionTokens

WIDTHS = tuple(2.0**k for k in range(-3, 2))  # alpha of the Gaussians exp(-distance^2 / (2 alpha))
TEMPERATURE = 0.01  # of the softmax over frames


@register("vidcom2")
@dataclass(frozen=True)
class VidCom2(Method):
    """A token is like a centre by a sum of Gaussians of its distance, among unit vectors over the half of the channels
    that vary least. Each frame keeps its tokens least like the video's centre plus the frame's own. Frames keep in
    proportion to ``1 + p - mean p``, p the softmax over frames of how unlike the video's centre their tokens are.

    A token with a NaN, or without a place, ranks last.

    Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models, arXiv 2505.14454.
    Departs from the paper: the proportions are met at every budget by one order of all tokens, (rank in its frame + 1)
    over the frame's share, so the budget is kept exactly. Written from descriptions: no output of the authors' code was
    at hand to compare with.
    """

    name: ClassVar[str] = "vidcom2"
    gridded: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models, "
        "arXiv 2505.14454"
    )
    variants: ClassVar[str] = "a still picture is one frame"

    @torch.no_grad()
    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        sound = comparable(self.name, tokens)
        frame = tokens.grid[..., 0].where(sound, -1)
        whole = torch.zeros_like(frame).where(sound, -1)
        direction = steady(tokens.features, whole)
        frames = max(1, int(frame.max()) + 1)
        like_video, like_frame = likeness(direction, whole, 1), likeness(direction, frame, frames)

        exists = group_mean(torch.ones_like(direction[..., :1]), frame, frames)[..., 0] > 0
        unlike = -group_mean(like_video[..., None], frame, frames)[..., 0].masked_fill(~exists, torch.inf)
        p = (unlike / TEMPERATURE).softmax(dim=1)
        share = 1 + p - 1 / exists.sum(dim=1, keepdim=True)
        rank, size = ranked(-(like_video + like_frame), frame)
        turn = (rank + 1) / (size * share.gather(1, frame.clamp(min=0)))
        return Reduction.top(-turn.where(sound, torch.nan), keep, tokens)


def steady(features: Tensor, whole: Tensor) -> Tensor:
    """``[I, N, D / 2]``: the channels of least variance within each picture (``whole``: 0, or -1 = left out), as unit
    vectors."""
    wide = features if features.dtype == torch.float64 else features.float()
    variance = group_mean((wide - group_mean(wide, whole, 1)).square(), whole, 1)
    channels = variance.argsort(dim=2, stable=True)[..., : (wide.shape[2] + 1) // 2]
    return unit(wide.gather(2, channels.expand(-1, wide.shape[1], -1)))


def likeness(direction: Tensor, group: Tensor, groups: int) -> Tensor:
    """``[I, N]``: how like the mean of its group ``[I, N]`` (-1 = none) each token is."""
    centre = group_mean(direction, group, groups)
    own = centre.gather(1, group.clamp(min=0)[..., None].expand_as(direction))
    distance = (direction - own).square().sum(dim=2)
    return sum((torch.exp(-distance / (2 * width)) for width in WIDTHS), torch.zeros_like(distance))
