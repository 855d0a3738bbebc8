"""Parts of a video: of each window of frames the places that stand still, and of each frame the rest. What HoliTom and
PruneVid share: where a place stands still, one token, the head, stands for the place in all frames of its window."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.methods._density import closest, peaks
from vtc.methods._frames import cosine, earlier, group_size, ranked
from vtc.tokens import Reduction, VisionTokens


def split(tokens: VisionTokens, frame: Tensor, begin: Tensor, still: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """``[I, N]`` each: the head of every token (itself where its place moves), and the part of every head, 0 .. 2 *
    frames - 1, the first half still ones; -1 for others.

    ``frame [I, N]``, -1 = left out; ``begin [I, N]``: where the token's window begins; ``still [I, N]``.
    """
    index = torch.arange(frame.shape[1], device=frame.device)
    head = earlier(tokens, frame - begin, frame >= 0).where(still, index).where(frame >= 0, -1)
    return head, begin.where(still, frames + frame).where(head == index, -1)


def spend(
    tokens: VisionTokens, head: Tensor, part: Tensor, turn: Tensor, keep: list[int], frames: int
) -> tuple[Tensor, Tensor]:
    """``(kept [I, N], quota [I, N])``: the ``keep[i]`` heads of lowest ``turn [I, N]``, at most 1, and how many of its
    part each head is among. Where there are more slots than heads, tokens least like their head stand alone."""
    alone = 3 + cosine(tokens.features, head)
    kept = Reduction.top(-turn.where(part >= 0, alone).where(head >= 0, torch.nan), keep, tokens).slot >= 0
    quota = group_size(part.where(kept, -1), 2 * frames)
    return kept, quota.gather(1, part.clamp(min=0)).where(part >= 0, 0)


def cluster(x: Tensor, part: Tensor, quota: Tensor, nearest: Tensor | int) -> Tensor:
    """``[I, N]``: for each token of a ``part [I, N]`` (-1 = none) the nearest of its part's ``quota`` density peaks, a
    peak itself; -1 where there is none."""
    centre = (part >= 0) & (ranked(peaks(x, part, nearest), part)[0] < quota)
    joins = closest(x, part, part.where(centre, -1))
    return torch.arange(part.shape[1], device=part.device).where(centre, joins)
