"""A matrix of indices into a few values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.weights.codec.packing import packed_bytes, unpack
from vtc.weights.codec.terms import register
from vtc.weights.codec.terms.base import Shapes, Tensors, Term


@register("codebook")
@dataclass(frozen=True)
class Codebook(Term):
    """Indices of ``bits`` bits into a table of values for the matrix or (``rows``) for each output row."""

    kind: ClassVar[str] = "codebook"
    bits: int = 4
    rows: bool = False

    def shapes(self, out: int, width: int, dtype: torch.dtype) -> Shapes:
        table = (out if self.rows else 1, 2**self.bits)
        return {"codes": ((out, packed_bytes(width, self.bits)), torch.uint8), "table": (table, dtype)}

    def dense(self, tensors: Tensors, out: int, width: int) -> Tensor:
        codes = unpack(tensors["codes"], self.bits, width).long()
        return tensors["table"].expand(out, -1).gather(1, codes)
