"""A matrix of signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.weights.codec.packing import packed_bytes, unpack
from vtc.weights.codec.terms import register
from vtc.weights.codec.terms.base import Shapes, Tensors, Term


@register("signs")
@dataclass(frozen=True)
class Signs(Term):
    """-1 or 1 in one bit, times one scale for the matrix: what BitDelta keeps of a difference."""

    kind: ClassVar[str] = "signs"

    def shapes(self, out: int, width: int, dtype: torch.dtype) -> Shapes:
        return {"codes": ((out, packed_bytes(width, 1)), torch.uint8), "scale": ((1, 1), dtype)}

    def dense(self, tensors: Tensors, out: int, width: int) -> Tensor:
        signs = unpack(tensors["codes"], 1, width).to(tensors["scale"].dtype)
        return (2 * signs - 1) * tensors["scale"]
