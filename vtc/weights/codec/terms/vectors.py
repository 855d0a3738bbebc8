"""Singular vectors in mixed precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from vtc.weights.codec.packing import pack, packed_bytes, unpack
from vtc.weights.codec.terms import register
from vtc.weights.codec.terms.base import Shapes, Tensors, Term


@register("vectors")
@dataclass(frozen=True)
class Vectors(Term):
    """``U diag(s) VT``, both factors as integers, in ``bands`` of (bits, components): Delta-CoMe's mixed precision.

    Of band n: u{n} ``[O, C]`` and v{n} ``[C, D]``, packed, each with a scale and a zero point for every ``group``
    entries of a row (0: the row); s ``[R]``. ``ordered``: the inputs of VT stand in the order ``order [D]``.
    """

    kind: ClassVar[str] = "vectors"
    bands: tuple[tuple[int, int], ...] = ((8, 2),)
    group: int = 128
    ordered: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "bands", tuple((int(bits), int(count)) for bits, count in self.bands))  # JSON: lists

    @property
    def rank(self) -> int:
        return sum(count for _, count in self.bands)

    def shapes(self, out: int, width: int, dtype: torch.dtype) -> Shapes:
        found: Shapes = {"s": ((self.rank,), torch.float32)}
        for n, (bits, count) in enumerate(self.bands):
            for name, rows, columns in ((f"u{n}", out, count), (f"v{n}", count, width)):
                groups = -(-columns // self.group) if self.group else 1
                found[name] = ((rows, packed_bytes(columns, bits)), torch.uint8)
                found[f"{name}_scale"] = ((rows, groups), dtype)
                found[f"{name}_zero"] = ((packed_bytes(rows * groups, bits),), torch.uint8)
        if self.ordered:
            found["order"] = ((width,), self.order_dtype(width))
        return found

    @staticmethod
    def order_dtype(width: int) -> torch.dtype:
        return torch.int16 if width <= 2**15 else torch.int32

    @staticmethod
    def pack(name: str, codes: Tensor, scale: Tensor, zero: Tensor, bits: int) -> dict[str, Tensor]:
        """The tensors of one factor: codes ``[M, N]`` in [0, 2^bits), scale and zero ``[M, G]``."""
        return {
            name: pack(codes.to(torch.uint8), bits),
            f"{name}_scale": scale,
            f"{name}_zero": pack(zero.to(torch.uint8).flatten(), bits),
        }

    def factor(self, tensors: Tensors, name: str, columns: int, bits: int) -> Tensor:
        """``[M, N]``: one factor, its columns in the order they are stored in."""
        scale = tensors[f"{name}_scale"]
        zero = unpack(tensors[f"{name}_zero"], bits, scale.numel()).view(scale.shape).to(scale.dtype)
        codes = unpack(tensors[name], bits, columns).to(scale.dtype)
        spread = lambda t: t.repeat_interleave(self.group or columns, dim=1)[:, :columns]  # noqa: E731
        return (codes - spread(zero)) * spread(scale)

    def factors(self, tensors: Tensors, width: int) -> tuple[Tensor, Tensor]:
        """``(u [O, R], v [R, D])``, the inputs of v in the order they are stored in."""
        bands = list(enumerate(self.bands))
        u = torch.cat([self.factor(tensors, f"u{n}", count, bits) for n, (bits, count) in bands], dim=1)
        return u, torch.cat([self.factor(tensors, f"v{n}", width, bits) for n, (bits, _) in bands])

    def dense(self, tensors: Tensors, out: int, width: int) -> Tensor:
        u, v = self.factors(tensors, width)
        weight = (u * tensors["s"].to(u.dtype)) @ v
        return weight[:, tensors["order"].long().argsort()] if self.ordered else weight

    def product(self, x: Tensor, tensors: Tensors, out: int, width: int) -> Tensor:
        u, v = self.factors(tensors, width)
        x = x[..., tensors["order"].long()] if self.ordered else x
        return linear(linear(x, v.to(x.dtype)) * tensors["s"].to(x.dtype), u.to(x.dtype))

    def flops(self, out: int, width: int) -> int:
        return 2 * self.rank * (out + width)
