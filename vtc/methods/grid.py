"""Keep an evenly spaced sub-grid: the baseline that knows only where tokens are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.methods import register
from vtc.methods._grid_cells import leaders
from vtc.methods.base import Method
from vtc.signals.base import Signal
from vtc.tokens import Reduction, VisionTokens


@register("grid")
@dataclass(frozen=True)
class Grid(Method):
    """Keep the middle token of each of ``keep[i]`` near-equal rectangular cells (those of ``pool``), drop the rest."""

    name: ClassVar[str] = "grid"
    gridded: ClassVar[bool] = True
    paper: ClassVar[str] = "baseline"

    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        leader = leaders("grid", tokens, keep)
        middle = leader == torch.arange(leader.shape[1], device=leader.device)
        return Reduction.top(middle, keep, tokens)
