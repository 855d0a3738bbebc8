"""Rows of each prompt, by index."""

from __future__ import annotations

from torch import Tensor


def gather_rows(x: Tensor, rows: Tensor, dim: int = 1) -> Tensor:
    """Rows ``rows [B, K]`` of ``x`` along ``dim``; the batch dimension (0) of ``x`` is B or 1."""
    x = x.expand(rows.shape[0], *x.shape[1:])
    index = rows.view(rows.shape[0], *[1] * (dim - 1), rows.shape[1], *[1] * (x.dim() - dim - 1))
    return x.gather(dim, index.expand(*x.shape[:dim], rows.shape[1], *x.shape[dim + 1 :]))
