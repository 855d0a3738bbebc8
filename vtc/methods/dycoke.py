"""DyCoke's token temporal merging (its first stage): frames against the frames before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.methods import register
from vtc.methods._frames import comparable, cosine, earlier, ranked
from vtc.methods.base import Method
from vtc.signals.base import Signal
from vtc.tokens import Reduction, VisionTokens


@register("dycoke")
@dataclass(frozen=True)
class DyCoke(Method):
    """Every odd frame keeps its tokens least alike the same place of the frame before; of every four frames the third
    likewise against the first. All those frames keep equally many, the others stay whole.

    Where the budget does not reach for the whole frames, they too keep equally many: each against the whole frame
    before it, only the first frame stays whole to the last. A still picture is that first frame and keeps its first
    tokens. A token with a NaN, or without a place, ranks last.

    DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models, arXiv 2411.15024. Departs from the
    paper: only the first stage (the second chooses keys anew at every decoding step); as in the authors' code tokens
    are dropped, not merged, and the last four frames keep their third whole. Departs from that code: a last odd frame
    is not lost, and the budget decides how many each frame keeps.
    """

    name: ClassVar[str] = "dycoke"
    gridded: ClassVar[bool] = True
    compares_frames: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "DyCoke: Dynamic Compression of Tokens for Fast Video Large Language Models, arXiv 2411.15024"
    )
    variants: ClassVar[str] = "for videos; a still picture keeps its first tokens"

    @torch.no_grad()
    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        sound = comparable(self.name, tokens)
        frame = tokens.grid[..., 0].masked_fill(~tokens.valid, -1)
        third = frame % 4 == 2
        pruned = (frame % 2 == 1) | third & (frame + 2 <= frame.amax(dim=1, keepdim=True))
        steps = torch.where(frame % 2 == 1, 1, torch.where(third, 2, 4))
        rank, _ = ranked(-cosine(tokens.features, earlier(tokens, steps, sound)), frame.where(sound, -1))
        turn = (frame > 0).long() + pruned  # the first frame, whole ones, pruned ones
        return Reduction.top(-(turn * frame.shape[1] + rank).float().where(sound, torch.nan), keep, tokens)
