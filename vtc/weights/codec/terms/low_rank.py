"""A product of two thin matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from vtc.weights.codec.terms import register
from vtc.weights.codec.terms.base import Shapes, Tensors, Term


@register("lowrank")
@dataclass(frozen=True)
class LowRank(Term):
    """``U V``: u ``[O, R]``, v ``[R, D]``."""

    kind: ClassVar[str] = "lowrank"
    rank: int = 8

    def shapes(self, out: int, width: int, dtype: torch.dtype) -> Shapes:
        return {"u": ((out, self.rank), dtype), "v": ((self.rank, width), dtype)}

    def dense(self, tensors: Tensors, out: int, width: int) -> Tensor:
        return tensors["u"] @ tensors["v"]

    def product(self, x: Tensor, tensors: Tensors, out: int, width: int) -> Tensor:
        return linear(linear(x, tensors["v"].to(x.dtype)), tensors["u"].to(x.dtype))

    def flops(self, out: int, width: int) -> int:
        return 2 * self.rank * (out + width)
