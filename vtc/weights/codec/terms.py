"""The terms a compressed weight is a sum of: ``W = mask * dequant(Q) + U V + ...``.

A term is a frozen description (it goes into ``config.json``); its tensors are plain and stand beside it by name. A new
kind is one class here or in a file that registers it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from vtc.errors import CheckpointError
from vtc.weights.codec import sparsity as layouts
from vtc.weights.codec.packing import pack, pack_trits, packed_bytes, unpack, unpack_trits

Tensors = Mapping[str, Tensor]
Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]
KINDS: dict[str, type[Term]] = {}


@dataclass(frozen=True)
class Term:
    """One summand of a weight ``[O, D]``."""

    kind: ClassVar[str]

    def __init_subclass__(cls) -> None:
        KINDS[cls.kind] = cls

    def shapes(self, out: int, width: int, dtype: torch.dtype) -> Shapes:
        """Shape and dtype of each tensor, for a model of ``dtype``."""
        raise NotImplementedError

    def dense(self, tensors: Tensors, out: int, width: int) -> Tensor:
        """``[O, D]``: the summand, in the dtype of its floating-point tensors."""
        raise NotImplementedError

    def product(self, x: Tensor, tensors: Tensors, out: int, width: int) -> Tensor:
        """``[..., D] -> [..., O]``: inputs times the summand, transposed."""
        return linear(x, self.dense(tensors, out, width).to(x.dtype))

    def flops(self, out: int, width: int) -> int:
        """Multiplications and additions for one token."""
        return 2 * out * width

    def written(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


def read_term(written: dict[str, Any]) -> Term:
    """What ``written`` wrote. Raises ``CheckpointError`` for another kind or other fields."""
    fields = dict(written)
    kind = fields.pop("kind", None)
    if kind not in KINDS:
        raise CheckpointError(f"no term of a weight is called {kind!r}; this vtc knows {', '.join(sorted(KINDS))}")
    try:
        return KINDS[kind](**fields)
    except TypeError as error:
        raise CheckpointError(f"term {kind}: {error}; the checkpoint is from another version of vtc") from error


@dataclass(frozen=True)
class Floats(Term):
    """Values as they are, of a pruned matrix. values; mask (packed) unless the layout is dense."""

    kind: ClassVar[str] = "floats"
    layout: str = layouts.DENSE
    kept: int = 0

    def shapes(self, out: int, width: int, dtype: torch.dtype) -> Shapes:
        found: Shapes = {"values": (layouts.value_shape(self.layout, self.kept, out, width), dtype)}
        return _with_mask(found, self.layout, out, width)

    def dense(self, tensors: Tensors, out: int, width: int) -> Tensor:
        return layouts.place(tensors["values"], tensors.get("mask"), self.layout, out, width)


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
        return _with_mask(found, self.layout, out, width)

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


@dataclass(frozen=True)
class Signs(Term):
    """-1 or 1 in one bit, times one scale for the matrix: what BitDelta keeps of a difference."""

    kind: ClassVar[str] = "signs"

    def shapes(self, out: int, width: int, dtype: torch.dtype) -> Shapes:
        return {"codes": ((out, packed_bytes(width, 1)), torch.uint8), "scale": ((1, 1), dtype)}

    def dense(self, tensors: Tensors, out: int, width: int) -> Tensor:
        signs = unpack(tensors["codes"], 1, width).to(tensors["scale"].dtype)
        return (2 * signs - 1) * tensors["scale"]


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


def _with_mask(shapes: Shapes, layout: str, out: int, width: int) -> Shapes:
    mask = layouts.mask_shape(layout, out, width)
    return shapes if mask is None else {**shapes, "mask": (mask, torch.uint8)}
