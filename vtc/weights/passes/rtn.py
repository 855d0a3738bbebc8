"""Round to nearest: what every other quantizer is measured against."""

from __future__ import annotations

from dataclasses import dataclass

from vtc.weights.codec import grids
from vtc.weights.passes import register
from vtc.weights.passes._matrix import as_ints
from vtc.weights.passes.base import Candidate, Pass, check_bits, check_flag, check_group


@register("rtn")
@dataclass(frozen=True)
class RTN(Pass):
    """Integers of ``bits`` bits with a scale for every ``group`` inputs (0: whole rows); needs no calibration."""

    bits: int = 8
    group: int = 128
    symmetric: bool = True
    name = "rtn"
    needs_gram = False

    def __post_init__(self) -> None:
        check_bits(self.bits)
        check_group(self.group)
        check_flag("symmetric", self.symmetric)

    def fit(self, layer: Candidate) -> Candidate:
        codes, scale, zero = grids.round_to_nearest(
            layer.for_matrix, self.bits, self.group, self.symmetric, layer.dtype
        )
        return as_ints(layer, codes, scale, None if self.symmetric else zero, self.bits, self.group)
