"""HiPrune: objects from a middle layer of the tower with their surroundings, global tokens from a deep one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.methods import register
from vtc.methods._grid_cells import need_grid
from vtc.methods._ranks import first
from vtc.methods.base import Method
from vtc.signals.base import Signal
from vtc.signals.tower_attention import TowerAttention
from vtc.tokens import Reduction, VisionTokens, cut, scatter_valid, top


@register("hiprune")
@dataclass(frozen=True)
class HiPrune(Method):
    """With the attention that tokens receive, a mean over all rows: keep the anchors, of largest attention in a middle
    layer; their buffers, one token before and behind and one row above and below in reading order (so the ends of rows
    touch, and what would lie outside is the picture's first or last token); and for the rest the registers, of largest
    attention in the second last layer. ``alpha`` is the share of the kept tokens that are anchors and buffers.

    HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models, arXiv 2508.00553.
    Departs from the paper: where anchors and buffers are more than the budget, which fails there, the best of them by
    the deep attention stay.
    """

    name: ClassVar[str] = "hiprune"
    paper: ClassVar[str] = (
        "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in Vision-Language Models, "
        "arXiv 2508.00553"
    )

    alpha: float = 0.1
    layer: int | float = 8 / 24

    def __post_init__(self) -> None:
        a = self.alpha
        if isinstance(a, bool) or not isinstance(a, (int, float)) or not 0 <= a <= 1:
            raise ValueError(f"hiprune: alpha={a!r} is not a share in [0, 1]; the paper's is 0.1")
        self.signals(0)  # checks the layer
        super().__post_init__()

    def signals(self, stage: int) -> tuple[Signal, ...]:
        return TowerAttention(self.layer, rows="all"), TowerAttention(-2, rows="all")

    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        middle, deep = (signals[s] for s in self.signals(stage))
        anchor = top(
            middle, [min(n, round(k * self.alpha / 5)) for n, k in zip(tokens.count, keep, strict=True)], tokens.valid
        )
        around = neighbours(anchor, tokens)
        chosen = scatter_valid(torch.zeros_like(tokens.valid), around, torch.ones_like(around))
        return Reduction.keep(cut(first(chosen, deep, tokens), keep), tokens)


def neighbours(anchor: Tensor, tokens: VisionTokens) -> Tensor:
    """``[I, 5 A]``: the tokens ``anchor [I, A]`` and those around them, -1 for anchors that are -1."""
    need_grid("hiprune", tokens)
    frame, x = (tokens.grid[..., axis].where(tokens.valid, 0) for axis in (0, 2))
    wide = torch.zeros_like(frame).scatter_reduce(1, frame, x + 1, "amax")  # of each frame; there are N at most
    wide = wide.gather(1, frame).gather(1, anchor.clamp(min=0))
    last = torch.tensor(tokens.count, device=anchor.device)[:, None, None] - 1
    around = torch.stack([anchor, anchor - 1, anchor + 1, anchor - wide, anchor + wide], dim=2)
    return around.clamp(min=0).minimum(last).masked_fill(anchor[..., None] < 0, -1).flatten(1)
