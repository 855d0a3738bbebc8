"""ASVD: a low rank of the weights scaled by how large their inputs are (arXiv 2312.05821)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtc.errors import WeightsError
from vtc.weights.fitting.lowrank import scaled
from vtc.weights.passes import register
from vtc.weights.passes._lowrank import LowRankPass
from vtc.weights.passes.base import Candidate

LEAST = 1e-6  # added to every scale, as the authors' code does: a dead input is not divided by zero


@register("asvd")
@dataclass(frozen=True)
class ASVD(LowRankPass):
    """SVD of ``W diag(a^alpha)``, with a the mean |x| of each input, or (``by="max"``) the largest.

    Departs from the authors' code: the exact SVD in place of a randomised one. ``svdllm`` has less error at the same
    rank; this one stands for comparison.
    """

    alpha: float = 0.5
    by: str = "mean"
    name = "asvd"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 2:
            raise WeightsError(f"alpha must be between 0 (plain SVD) and 2, like 0.5, not {self.alpha!r}")
        if self.by not in ("mean", "max"):
            raise WeightsError(f'by must be "mean" or "max", not {self.by!r}')

    def factors(self, rest: Tensor, layer: Candidate, rank: int) -> tuple[Tensor, Tensor]:
        size = layer.gram.mean_absolute if self.by == "mean" else layer.gram.largest
        return scaled(rest, size.double() ** self.alpha + LEAST, rank)
