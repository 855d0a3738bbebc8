"""HoliTom's outer stage: windows in which much stands still, merged over time; the rest by the tower's attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.methods import register
from vtc.methods._frames import check_options, comparable, cosine, earlier, group_mean, group_size, ranked, runs
from vtc.methods._parts import cluster, spend, split
from vtc.methods.base import Method
from vtc.signals.base import Signal
from vtc.signals.tower_attention import TowerAttention
from vtc.tokens import Reduction, VisionTokens

NEIGHBOURS = 7  # at most, of a token's density


@register("holitom")
@dataclass(frozen=True)
class HoliTom(Method):
    """A video is cut into windows such that most tokens are saved by keeping the places that stand still (all cosines
    from frame to frame above ``alike``) once a window, as their mean over its frames. Of these as many density peaks
    are kept as the budget's share says; each of the others joins its nearest, and with some joined a peak becomes
    ``own * peak + (1 - own) * their mean``. Of what moves, each frame keeps the tokens the tower looks at most.

    Where more slots are left than that, tokens least like the first of their place stand alone again. A still picture
    is one frame, in which everything moves. A token with a NaN, or without a place, ranks last.

    HoliTom: Holistic Token Merging for Fast Video Large Language Models, arXiv 2505.21334. Departs from the paper: only
    the outer stage, and as in the authors' code what moves is dropped, not merged; attention is that of the layer LLaVA
    reads; a window may be as long as the video (their ``max_window`` is 1024 frames); parts share the budget by one
    order of all tokens, (rank in its part) over the size of the part, so it is kept exactly; a merged token stands at
    its first frame.
    """

    name: ClassVar[str] = "holitom"
    gridded: ClassVar[bool] = True
    paper: ClassVar[str] = "HoliTom: Holistic Token Merging for Fast Video Large Language Models, arXiv 2505.21334"
    variants: ClassVar[str] = "a still picture is one frame; without a CLS token: mean attention received"
    trains: ClassVar[bool] = True

    alike: float = 0.8
    own: float = 0.6

    def __post_init__(self) -> None:
        check_options(self.name, self, shares=("alike", "own"))
        super().__post_init__()

    def signals(self, stage: int) -> tuple[Signal, ...]:
        return (TowerAttention(-2),)

    @torch.no_grad()
    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        attention, index = signals[TowerAttention(-2)], torch.arange(tokens.row.shape[1], device=tokens.row.device)
        frame = tokens.grid[..., 0].where(comparable(self.name, tokens), -1)
        frames = max(1, int(frame.max()) + 1)
        begin, still = self.standing(tokens, frame, frames)
        head, part = split(tokens, frame, begin, still, frames)
        rank, size = ranked(attention.where(~still, 0), part)
        kept, quota = spend(tokens, head, part, (rank + still / 2) / size, keep, frames)

        alone = kept & (part < 0)
        head = head.where(~alone, index)
        merged = group_mean(tokens.features, head, len(index))
        leader = cluster(merged, part.where(still, -1), quota, quota.clamp(max=NEIGHBOURS))
        leader = leader.where((part >= 0) & still, index.where(kept, -1))

        joined = group_size(leader.where(leader != index, -1), len(index))  # other heads of each peak
        here = joined.gather(1, leader.clamp(min=0)).to(torch.promote_types(tokens.features.dtype, torch.float32))
        own = torch.where(leader == index, self.own, (1 - self.own) / here).masked_fill(here == 0, 1.0)
        weight = own / group_size(head, len(index)).clamp(min=1)  # of each token of a head
        owner = head.clamp(min=0)
        return Reduction.join(leader.gather(1, owner).where(head >= 0, -1), max(keep), weight.gather(1, owner))

    def standing(self, tokens: VisionTokens, frame: Tensor, frames: int) -> tuple[Tensor, Tensor]:
        """``[I, N]`` each: the first frame of each token's window, and whether its place stands still in it."""
        before = earlier(tokens, 1, frame >= 0)
        alike = cosine(tokens.features, before) > self.alike
        run = torch.zeros_like(frame)  # how many frames before have been alike without a break
        for now in range(1, frames):
            run = (run.gather(1, before.clamp(min=0)) + 1).where(alike & (frame == now), run)
        begin, end = (edge.gather(1, frame.clamp(min=0)) for edge in windows(run, frame, frames))
        last = earlier(tokens, frame - end, frame >= 0)
        long = run.gather(1, last.clamp(min=0)) >= end - begin
        return begin, (frame >= 0) & (last >= 0) & (end > begin) & long


def windows(run: Tensor, frame: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """``[I, F]`` each: first and last frame of every frame's window, the windows that save most tokens in all.

    ``run [I, N]``: for how many frames a token's place has stood still. A window of w frames whose last frame has n
    tokens of ``run >= w - 1`` saves ``n * (w - 1)``; on ties the shorter window stands.
    """
    still = group_size((frame * frames + run).where(frame >= 0, -1), frames * frames).unflatten(1, (frames, frames))
    saved = still.flip(2).cumsum(dim=2).flip(2) * torch.arange(frames, device=run.device)
    best, width = [run.new_zeros(len(run))], []
    for last in range(frames):
        most = (torch.stack(best[::-1], dim=1) + saved[:, last, : last + 1]).max(dim=1)
        best.append(most.values)
        width.append(most.indices + 1)
    begin, begins = torch.full_like(best[0], frames), []
    for last in reversed(range(frames)):
        begin = torch.where(begin > last, last + 1 - width[last], begin)
        begins.append(begin == last)
    return runs(torch.stack(begins[::-1], dim=1))
