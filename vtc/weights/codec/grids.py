"""Integer grids: scale and zero point of a group of weights, rounding to them. Pure functions; ties round to even."""

from __future__ import annotations

import torch
from torch import Tensor


def grid(
    weights: Tensor, bits: int, symmetric: bool = True, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """``(scale, zero)``, both ``[...]``, of groups ``weights [..., G]``; value = scale * (code - zero).

    Symmetric: scale = 2 max|w| / (2^bits - 1), zero = 2^(bits-1), as llm-compressor has it. Asymmetric: the range
    [min(w, 0), max(w, 0)], so that zero is a code of its own. The scale is rounded to ``dtype``, in which it is stored.
    """
    levels = 2**bits - 1
    if symmetric:
        scale = 2 * weights.abs().amax(-1) / levels
        zero = torch.full_like(scale, 2 ** (bits - 1))
    else:
        low, high = weights.amin(-1).clamp_max(0), weights.amax(-1).clamp_min(0)
        scale = (high - low) / levels
        zero = (-low / _one_where_zero(scale)).round().clamp(0, levels)
    scale = scale.to(dtype).float()
    return _one_where_zero(scale), zero


def to_codes(weights: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """The nearest codes, as floats; shapes broadcast."""
    return ((weights / scale).round() + zero).clamp(0, 2**bits - 1)


def from_codes(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return scale * (codes - zero)


def round_to_nearest(
    weight: Tensor, bits: int, group: int, symmetric: bool = True, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """``(codes [O, D], scale [O, G], zero [O, G])`` of ``weight [O, D]``: a grid for every ``group`` inputs (0: a row)
    from its own weights. The largest of a symmetric group is a tie: the product with 1/scale settles it as torchao's
    fake quantization does, so that training with that ends in these codes."""
    groups = grouped(weight, group)
    scale, zero = grid(groups, bits, symmetric, dtype)
    codes = to_codes(groups * (1 / scale)[..., None], torch.ones_like(scale)[..., None], zero[..., None], bits)
    return codes.flatten(1)[:, : weight.shape[1]], scale, zero


def dequantized(codes: Tensor, scale: Tensor, zero: Tensor, group: int) -> Tensor:
    """``[O, D]``: the weights that ``round_to_nearest`` gave codes for."""
    groups = from_codes(grouped(codes, group), scale[..., None], zero[..., None])
    return groups.flatten(1)[:, : codes.shape[1]]


def grouped(weight: Tensor, group: int) -> Tensor:
    """``[O, D] -> [O, G, group]``, the last group filled with zeros (0: one group a row)."""
    group = group or weight.shape[1]
    return torch.nn.functional.pad(weight, (0, -weight.shape[1] % group)).unflatten(1, (-1, group))


def _one_where_zero(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.ones_like(scale), scale)
