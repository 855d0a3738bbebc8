"""A matrix of -1, 0 and 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.weights.codec.packing import pack_trits, unpack_trits
from vtc.weights.codec.terms import register
from vtc.weights.codec.terms.base import Shapes, Tensors, Term


@register("trits")
@dataclass(frozen=True)
class Trits(Term):
    """-1, 0 and 1, five a byte, times a scale for the whole matrix or (``rows``) for each output row."""

    kind: ClassVar[str] = "trits"
    rows: bool = False

    def shapes(self, out: int, width: int, dtype: torch.dtype) -> Shapes:
        scale = (out, 1) if self.rows else (1, 1)
        return {"codes": ((out, -(-width // 5)), torch.uint8), "scale": (scale, dtype)}

    def dense(self, tensors: Tensors, out: int, width: int) -> Tensor:
        return unpack_trits(tensors["codes"], width).to(tensors["scale"].dtype) * tensors["scale"]

    pack = staticmethod(pack_trits)
