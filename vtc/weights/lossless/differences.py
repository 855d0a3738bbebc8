"""A tensor as its difference from one that is near it; exact for any bit patterns, NaN payloads included.

Floats are numbered in the order of their values, and the numbers are subtracted: neighbours differ by one across
exponents and zero, where bits that are compared by XOR all change (11.1 against 11.7 bits a weight beside int4, groups
of 32, on the testbed in fp16). Differences alternate in sign: 0, -1, 1, -2, ... become 0, 1, 2, 3, ...
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vtc.weights.lossless.planes import SIGNED_FLOATS, Bytes, decode, encode, width


def encode_beside(raw: Bytes, near: Bytes, dtype: str) -> bytes:
    """A chunk of a tensor coded as its difference from ``near``, as many bytes."""
    if dtype not in SIGNED_FLOATS:
        return encode(raw ^ near, dtype)
    bits = 8 * width(dtype)
    steps = (_ordered(raw, bits) - _ordered(near, bits)).view(f"<i{bits // 8}")
    return encode(((steps << 1) ^ (steps >> (bits - 1))).view(np.uint8), f"U{bits}")


def decode_beside(stream: Any, near: Bytes, dtype: str) -> Bytes:
    """The chunk that ``encode_beside`` coded. Raises ``CheckpointError``."""
    if dtype not in SIGNED_FLOATS:
        return decode(stream, len(near), dtype) ^ near
    bits = 8 * width(dtype)
    coded = decode(stream, len(near), f"U{bits}").view(f"<u{bits // 8}")
    numbers = ((coded >> 1) ^ -(coded & 1)) + _ordered(near, bits)
    positive = (numbers >> (bits - 1)).astype(bool)
    return np.where(positive, numbers ^ _top(bits), ~numbers).astype(f"<u{bits // 8}").view(np.uint8)


def _ordered(raw: Bytes, bits: int) -> NDArray[Any]:
    """Floats as unsigned numbers that are ordered as they are: negative ones first, the largest first."""
    numbers = raw.view(f"<u{bits // 8}")
    negative = (numbers >> (bits - 1)).astype(bool)
    return np.where(negative, ~numbers, numbers | _top(bits))


def _top(bits: int) -> Any:
    return np.dtype(f"u{bits // 8}").type(1 << (bits - 1))
