"""Outputs laid out as the heads of an attention layer are."""

from __future__ import annotations

from torch import Tensor


def like_heads(x: Tensor) -> Tensor:
    """Empty, of the shape of x ``[B, H, N, d]``, stored as ``[B, N, H, d]``: what projections write and read."""
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2)
