"""Where the stored values of a matrix stand: everywhere, where a bitmap says, or m - n of every m inputs.

A layout maps a matrix ``[O, D]`` and the mask of what is kept to values without gaps and a packed mask, and back.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from vtc.errors import WeightsError
from vtc.weights.codec.packing import pack, packed_bytes, unpack

DENSE, BITMAP = "dense", "bitmap"


def n_of_m(layout: str) -> tuple[int, int] | None:
    """``(n, m)`` of the layout "n:m" (n of every m inputs are zero), None for the others."""
    if layout in (DENSE, BITMAP):
        return None
    found = re.fullmatch(r"(\d+):(\d+)", layout)
    if not found or not 0 < int(found[1]) < int(found[2]):
        raise WeightsError(f'layout {layout!r} is none of "{DENSE}", "{BITMAP}" and "n:m" with 0 < n < m, like "2:4"')
    return int(found[1]), int(found[2])


def layout_of(mask: Tensor | None, pattern: str | None) -> str:
    """The layout for a mask ``[O, D]`` of what is kept (None: all), made with the n:m ``pattern`` or without."""
    return DENSE if mask is None else (pattern or BITMAP)


def value_shape(layout: str, kept: int, out: int, width: int) -> tuple[int, ...]:
    """The shape of the stored values."""
    if layout == DENSE:
        return out, width
    if layout == BITMAP:
        return (kept,)
    n, m = n_of_m(layout)  # type: ignore[misc]
    if width % m:
        raise WeightsError(f"layout {layout} needs a multiple of {m} inputs and there are {width}; skip this layer")
    return out, width // m * (m - n)


def mask_shape(layout: str, out: int, width: int) -> tuple[int, int] | None:
    """The shape of the packed mask, uint8; None where there is none."""
    if layout == DENSE:
        return None
    if layout == BITMAP:
        return out, packed_bytes(width, 1)
    n, m = n_of_m(layout)  # type: ignore[misc]
    return out, packed_bytes(width // m * (m - n), (m - 1).bit_length())


def take(matrix: Tensor, mask: Tensor | None, layout: str) -> tuple[Tensor, Tensor | None]:
    """``(values, packed mask)`` of ``matrix [O, D]`` where ``mask [O, D]`` is True."""
    if layout == DENSE or mask is None:
        return matrix, None
    if layout == BITMAP:
        return matrix[mask], pack(mask, 1)
    n, m = n_of_m(layout)  # type: ignore[misc]
    out, width = matrix.shape
    groups = mask.view(out, width // m, m)
    if not bool((groups.sum(-1) == m - n).all()):
        raise WeightsError(f"this mask does not keep {m - n} of every {m} inputs, as layout {layout} must")
    where = groups.to(torch.int8).sort(dim=-1, descending=True, stable=True).indices[..., : m - n]
    values = matrix.view(out, width // m, m).gather(-1, where).flatten(1)
    return values, pack(where.flatten(1), (m - 1).bit_length())


def place(values: Tensor, packed: Tensor | None, layout: str, out: int, width: int) -> Tensor:
    """``[O, D]``: the stored values where they stand, zeros elsewhere."""
    if layout == DENSE or packed is None:
        return values
    full = torch.zeros(out, width, dtype=values.dtype, device=values.device)
    if layout == BITMAP:
        full[unpack(packed, 1, width).bool()] = values
        return full
    n, m = n_of_m(layout)  # type: ignore[misc]
    where = unpack(packed, (m - 1).bit_length(), values.shape[1]).long().view(out, width // m, m - n)
    return full.view(out, width // m, m).scatter_(-1, where, values.view(out, width // m, m - n)).view(out, width)


def kept_mask(packed: Tensor | None, layout: str, kept: int, out: int, width: int) -> Tensor | None:
    """``[O, D]`` bool: where values stand (None: everywhere)."""
    if layout == DENSE or packed is None:
        return None
    ones = torch.ones(value_shape(layout, kept, out, width), dtype=torch.bool, device=packed.device)
    return place(ones, packed, layout, out, width)
