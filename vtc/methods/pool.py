"""Average pooling of the grid: the down-sampling baseline, which many published methods do not beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtc.methods import register
from vtc.methods._grid_cells import leaders
from vtc.methods.base import Method
from vtc.signals.base import Signal
from vtc.tokens import Reduction, VisionTokens


@register("pool")
@dataclass(frozen=True)
class Pool(Method):
    """Average each of ``keep[i]`` near-equal rectangular cells of the grid; a cell stands at its middle token.

    At a quarter of a square grid this is 2 x 2 average pooling. In the spirit of Matryoshka Multimodal Models, arXiv
    2405.17430. Departs from the paper: no training, and any number of cells.
    """

    name: ClassVar[str] = "pool"
    gridded: ClassVar[bool] = True
    paper: ClassVar[str] = "baseline (average pooling as in Matryoshka Multimodal Models, arXiv 2405.17430)"
    trains: ClassVar[bool] = True

    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        return Reduction.join(leaders("pool", tokens, keep), max(keep))
