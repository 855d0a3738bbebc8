"""Small integers and masks as bytes, and back. Pure functions of tensors; every round trip is exact."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def pack(values: Tensor, bits: int) -> Tensor:
    """``[..., N]`` integers in [0, 2^bits) -> uint8 ``[..., ceil(N bits / 8)]``, lowest bits first."""
    n = values.shape[-1]
    width = packed_bytes(n, bits)
    if bits == 8:
        return values.to(torch.uint8)
    shifts = torch.arange(bits, device=values.device)
    stream = ((values.unsqueeze(-1).to(torch.uint8) >> shifts) & 1).flatten(-2)
    stream = torch.nn.functional.pad(stream, (0, 8 * width - n * bits)).unflatten(-1, (width, 8))
    return (stream << torch.arange(8, device=values.device)).sum(-1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The ``count`` integers of the last dimension that ``pack`` wrote, as uint8 ``[..., count]``."""
    if bits == 8:
        return packed[..., :count]
    if 8 % bits == 0:  # whole numbers a byte: no stream of single bits needed
        shifts = torch.arange(0, 8, bits, device=packed.device, dtype=torch.uint8)
        return ((packed.unsqueeze(-1) >> shifts) & (2**bits - 1)).flatten(-2)[..., :count]
    stream = ((packed.unsqueeze(-1) >> torch.arange(8, device=packed.device)) & 1).flatten(-2)[..., : count * bits]
    return (stream.unflatten(-1, (count, bits)) << torch.arange(bits, device=packed.device)).sum(-1).to(torch.uint8)


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of ``count`` integers of ``bits`` bits."""
    return math.ceil(count * bits / 8)


def pack_trits(values: Tensor) -> Tensor:
    """``[..., N]`` of -1, 0, 1 -> uint8 ``[..., ceil(N / 5)]``: five a byte (3^5 = 243)."""
    n = values.shape[-1]
    digits = torch.nn.functional.pad(values.to(torch.int64) + 1, (0, -n % 5)).unflatten(-1, (-1, 5))
    return (digits * 3 ** torch.arange(5, device=values.device)).sum(-1).to(torch.uint8)


def unpack_trits(packed: Tensor, count: int) -> Tensor:
    """What ``pack_trits`` wrote: int8 ``[..., count]`` of -1, 0, 1."""
    powers = (3 ** torch.arange(5, device=packed.device)).to(torch.int64)
    digits = (packed.to(torch.int64).unsqueeze(-1) // powers) % 3
    return (digits.flatten(-2)[..., :count] - 1).to(torch.int8)
