"""A pruned matrix, its values as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.weights.codec import sparsity as layouts
from vtc.weights.codec.terms import register
from vtc.weights.codec.terms.base import Shapes, Tensors, Term, with_mask


@register("floats")
@dataclass(frozen=True)
class Floats(Term):
    """Values as they are, of a pruned matrix. values; mask (packed) unless the layout is dense."""

    kind: ClassVar[str] = "floats"
    layout: str = layouts.DENSE
    kept: int = 0

    def shapes(self, out: int, width: int, dtype: torch.dtype) -> Shapes:
        found: Shapes = {"values": (layouts.value_shape(self.layout, self.kept, out, width), dtype)}
        return with_mask(found, self.layout, out, width)

    def dense(self, tensors: Tensors, out: int, width: int) -> Tensor:
        return layouts.place(tensors["values"], tensors.get("mask"), self.layout, out, width)
