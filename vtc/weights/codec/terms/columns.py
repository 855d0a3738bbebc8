"""A few columns as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from vtc.weights.codec.terms import register
from vtc.weights.codec.terms.base import Shapes, Tensors, Term


@register("columns")
@dataclass(frozen=True)
class Columns(Term):
    """Some inputs' columns, as they are: the outliers that LLM.int8() keeps. index ``[C]``; values ``[O, C]``."""

    kind: ClassVar[str] = "columns"
    count: int = 0

    def shapes(self, out: int, width: int, dtype: torch.dtype) -> Shapes:
        return {"index": ((self.count,), torch.int32), "values": ((out, self.count), dtype)}

    def dense(self, tensors: Tensors, out: int, width: int) -> Tensor:
        full = torch.zeros(out, width, dtype=tensors["values"].dtype, device=tensors["values"].device)
        full[:, tensors["index"].long()] = tensors["values"]
        return full

    def product(self, x: Tensor, tensors: Tensors, out: int, width: int) -> Tensor:
        return linear(x[..., tensors["index"].long()], tensors["values"].to(x.dtype))

    def flops(self, out: int, width: int) -> int:
        return 2 * out * self.count
