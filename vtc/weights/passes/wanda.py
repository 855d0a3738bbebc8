"""Wanda: weights that are small or see small inputs go (arXiv 2306.11695)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtc.weights.passes import register
from vtc.weights.passes._pruning import ByScore
from vtc.weights.passes.base import Candidate


@register("wanda")
@dataclass(frozen=True)
class Wanda(ByScore):
    """Score ``|w_ij| ||x_j||``, the norm over all calibration tokens; compared within an output row."""

    name = "wanda"

    def score(self, weight: Tensor, layer: Candidate) -> Tensor:
        return weight.abs() * layer.gram.moment.diagonal().sqrt()
