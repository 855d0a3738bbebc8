"""How small the exponents of bf16 weights can get: their histogram, its entropy, and Huffman's answer (DFloat11)."""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray


def exponent_histogram(bits: NDArray[np.uint16]) -> NDArray[np.int64]:
    """bf16 bit patterns ``[N]`` -> how often each exponent occurs, ``[256]``."""
    return np.bincount((bits.reshape(-1) >> 7) & 255, minlength=256)


def entropy(counts: NDArray[np.int64]) -> float:
    """Bits a symbol of symbols that occur ``counts`` times: no prefix code needs fewer. 0 where nothing occurs."""
    occurring = counts[counts > 0].astype(np.float64)
    shares = occurring / occurring.sum() if len(occurring) else occurring
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def huffman_bits(counts: NDArray[np.int64]) -> int:
    """Bits in all of an optimal prefix code over symbols that occur ``counts`` times: at least one bit a symbol."""
    heap = [int(count) for count in counts if count > 0]
    if len(heap) < 2:
        return sum(heap)
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total
