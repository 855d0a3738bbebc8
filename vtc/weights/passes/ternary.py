"""BitNet b1.58: every weight is -1, 0 or 1 times a scale (arXiv 2402.17764)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.weights.codec.terms.trits import Trits
from vtc.weights.passes import register
from vtc.weights.passes.base import Candidate, Pass, check_flag

LEAST_SCALE = 1e-5


@register("ternary")
@dataclass(frozen=True)
class Ternary(Pass):
    """Weights over their mean magnitude, rounded to -1, 0 or 1; one scale for the matrix, or (``rows``) for each output
    row. 1.6 bits a weight. Needs no calibration, and a model that was not trained so loses most of what it knows.

    Departs from the paper: five to a byte instead of four; pruned weights do not count for the mean.
    """

    rows: bool = False
    name = "ternary"
    needs_gram = False

    def __post_init__(self) -> None:
        check_flag("rows", self.rows)

    def fit(self, layer: Candidate) -> Candidate:
        trits, scale = absmean(layer.for_matrix, layer.mask, self.rows)
        return layer.with_matrix(Trits(self.rows), {"codes": Trits.pack(trits), "scale": scale.to(layer.dtype)})


def absmean(weight: Tensor, mask: Tensor | None, rows: bool) -> tuple[Tensor, Tensor]:
    """``(trits [O, D], scale)`` of ``weight [O, D]``, scale ``[1, 1]`` or, for ``rows``, ``[O, 1]``: the mean of |w|
    over what ``mask`` keeps."""
    over = (1,) if rows else (0, 1)
    kept = torch.ones_like(weight) if mask is None else mask.to(weight.dtype)
    scale = weight.abs().sum(over, keepdim=True) / kept.sum(over, keepdim=True).clamp_min(1)
    scale = scale.clamp_min(LEAST_SCALE)
    return (weight / scale).round().clamp(-1, 1), scale
