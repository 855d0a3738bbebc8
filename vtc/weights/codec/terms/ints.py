"""A matrix of small integers on a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.weights.codec import sparsity as layouts
from vtc.weights.codec.packing import pack, packed_bytes, unpack
from vtc.weights.codec.terms import register
from vtc.weights.codec.terms.base import Shapes, Tensors, Term, with_mask


@register("ints")
@dataclass(frozen=True)
class Ints(Term):
    """Integers of ``bits`` bits with a scale for every ``group`` inputs of an output row (0: the whole row).

    codes: packed, offset by 2^(bits-1); scale ``[O, G]``; zero ``[O, G]`` uint8 where ``zeros`` (value = scale *
    (code - zero)); columns ``[D]`` where ``scaled``: each input's column is multiplied by it (AWQ's 1/s).
    """

    kind: ClassVar[str] = "ints"
    bits: int = 4
    group: int = 128
    layout: str = layouts.DENSE
    kept: int = 0
    zeros: bool = False
    scaled: bool = False

    def groups(self, width: int) -> int:
        return -(-width // self.group) if self.group else 1

    def shapes(self, out: int, width: int, dtype: torch.dtype) -> Shapes:
        *rows, last = layouts.value_shape(self.layout, self.kept, out, width)
        found: Shapes = {
            "codes": ((*rows, packed_bytes(last, self.bits)), torch.uint8),
            "scale": ((out, self.groups(width)), dtype),
        }
        if self.zeros:
            found["zero"] = ((out, self.groups(width)), torch.uint8)
        if self.scaled:
            found["columns"] = ((width,), dtype)
        return with_mask(found, self.layout, out, width)

    def codes(self, tensors: Tensors, out: int, width: int) -> Tensor:
        """uint8, in the shape of the layout's values."""
        count = layouts.value_shape(self.layout, self.kept, out, width)[-1]
        return unpack(tensors["codes"], self.bits, count)

    def dense(self, tensors: Tensors, out: int, width: int) -> Tensor:
        codes = self.codes(tensors, out, width)
        numbers = layouts.place(codes, tensors.get("mask"), self.layout, out, width).to(tensors["scale"].dtype)
        group = self.group or width
        spread = lambda t: t.repeat_interleave(group, dim=1)[:, :width]  # noqa: E731
        zero = spread(tensors["zero"].to(numbers.dtype)) if self.zeros else 2 ** (self.bits - 1)
        weight = (numbers - zero) * spread(tensors["scale"])
        kept = layouts.kept_mask(tensors.get("mask"), self.layout, self.kept, out, width)
        weight = weight if kept is None else weight * kept
        return weight * tensors["columns"] if self.scaled else weight

    @staticmethod
    def pack(codes: Tensor, bits: int, mask: Tensor | None, layout: str) -> dict[str, Tensor]:
        """The tensors ``codes`` and ``mask`` of offset codes ``[O, D]`` in [0, 2^bits)."""
        values, where = layouts.take(codes, mask, layout)
        return {"codes": pack(values, bits)} | ({} if where is None else {"mask": where})
