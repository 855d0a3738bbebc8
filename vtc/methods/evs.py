"""EVS: keep what changed since the frame before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.methods import register
from vtc.methods._frames import comparable, cosine, earlier
from vtc.methods.base import Method
from vtc.signals.base import Signal
from vtc.tokens import Reduction, VisionTokens


@register("evs")
@dataclass(frozen=True)
class EVS(Method):
    """Keep the tokens least alike the token at the same place of the frame before: largest ``1 - cosine``.

    A token with none before it ranks first, so the first frame is kept whole while there is room; a still picture is
    all first frame and keeps its first tokens. A token with a NaN, or without a place, ranks last.

    Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference, arXiv 2510.14624. Departs
    from the paper: the budget may be smaller than the first frame; tokens keep their positions.
    """

    name: ClassVar[str] = "evs"
    gridded: ClassVar[bool] = True
    compares_frames: ClassVar[bool] = True
    paper: ClassVar[str] = (
        "Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference, arXiv 2510.14624"
    )
    variants: ClassVar[str] = "for videos; a still picture keeps its first tokens"

    @torch.no_grad()
    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        sound = comparable(self.name, tokens)
        score = 1 - cosine(tokens.features, earlier(tokens, 1, sound))  # +inf where nothing is before
        return Reduction.top(score.where(sound, torch.nan), keep, tokens)
