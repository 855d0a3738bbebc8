"""Plain SVD: the nearest low rank to the weights, whatever the inputs are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtc.weights.fitting.lowrank import truncated
from vtc.weights.passes import register
from vtc.weights.passes._lowrank import LowRankPass
from vtc.weights.passes.base import Candidate


@register("svd")
@dataclass(frozen=True)
class SVD(LowRankPass):
    """A low rank nearest to the weights in the Frobenius norm; needs no calibration."""

    name = "svd"
    needs_gram = False

    def factors(self, rest: Tensor, layer: Candidate, rank: int) -> tuple[Tensor, Tensor]:
        return truncated(rest, rank)
