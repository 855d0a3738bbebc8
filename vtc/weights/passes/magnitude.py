"""Magnitude pruning: small weights go (Han et al., arXiv 1506.02626)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtc.weights.passes import register
from vtc.weights.passes._pruning import ByScore
from vtc.weights.passes.base import Candidate


@register("magnitude")
@dataclass(frozen=True)
class Magnitude(ByScore):
    """Score ``|w|``; needs no calibration.

    Departs from the paper: no training afterwards, and every output row loses the same share.
    """

    name = "magnitude"
    needs_gram = False

    def score(self, weight: Tensor, layer: Candidate) -> Tensor:
        return weight.abs()
