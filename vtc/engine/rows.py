"""Row and column subsets as pure functions: gather states and positions, choose rows, put them back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtc.kernels.gather import gather_rows


@dataclass(frozen=True)
class Columns:
    """The logical columns that C stored keys stand for.

    index ``[B, C]`` int; valid ``[B, C]`` bool or None (all); log_size ``[B, C]`` float or None (all 0): what a column
    adds to every attention logit.
    """

    index: Tensor
    valid: Tensor | None = None
    log_size: Tensor | None = None

    def each(self, change) -> Columns:
        """The same change applied to every tensor."""
        valid, log_size = (None if t is None else change(t) for t in (self.valid, self.log_size))
        return Columns(change(self.index), valid, log_size)

    def without_last(self, count: int) -> Columns:
        return self.each(lambda t: t[:, : t.shape[1] - count]) if count else self

    def then(self, other: Columns) -> Columns:
        """These columns followed by ``other``; a missing tensor is filled with its default."""

        def join(a: Tensor | None, b: Tensor | None, default: float) -> Tensor | None:
            if a is None and b is None:
                return None
            dtype = (a if a is not None else b).dtype  # type: ignore[union-attr]
            a = torch.full_like(self.index, default, dtype=dtype) if a is None else a
            b = torch.full_like(other.index, default, dtype=dtype) if b is None else b
            return torch.cat([a, b], dim=1)

        return Columns(
            torch.cat([self.index, other.index], dim=1),
            join(self.valid, other.valid, True),
            join(self.log_size, other.log_size, 0.0),
        )


def gather_positions(embeddings: Any, rows: Tensor, length: int) -> Any:
    """Rotary tables (nested tuples or dicts of ``[..., B or 1, N, d]``) at the listed rows."""
    if embeddings is None:
        return None
    if isinstance(embeddings, dict):
        return {k: gather_positions(v, rows, length) for k, v in embeddings.items()}
    if isinstance(embeddings, (tuple, list)):
        return type(embeddings)(gather_positions(t, rows, length) for t in embeddings)
    if embeddings.dim() < 3 or embeddings.shape[-2] != length:
        return embeddings
    # transformers 5.8 gives M-RoPE tables as [3, B, N, d]: the batch is always third from the end.
    batch, kept = rows.shape
    table = embeddings.expand(*embeddings.shape[:-3], batch, *embeddings.shape[-2:])
    index = rows.view(*[1] * (table.dim() - 3), batch, kept, 1).expand(*table.shape[:-2], kept, table.shape[-1])
    return table.gather(-2, index)


def choose_rows(kept: Tensor, spare: Tensor, count: list[int]) -> tuple[Tensor, Tensor | None]:
    """``(rows [B, K] ascending, valid [B, K] or None)`` for ``kept [B, N]``, which holds ``count[b]`` rows of prompt b.

    Prompts with fewer than K = max(count) rows are filled with rows that are not kept, first from ``spare [B, N]``.
    """
    wide = max(count)
    rank = torch.where(kept, 0, torch.where(spare, 1, 2))
    rows = rank.argsort(dim=1, stable=True)[:, :wide].sort(dim=1).values
    return rows, (None if min(count) == wide else kept.gather(1, rows))


def taken(x: Tensor, rows: Tensor) -> Tensor:
    """``[B, H, K, d]``: those rows of ``x [B, H, N, d]`` that ``rows [B, K]`` names."""
    return x.gather(2, rows[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def put_rows(full: Tensor, short: Tensor, rows: Tensor, valid: Tensor | None) -> Tensor:
    """``full [B, N, D]`` with ``short [B, K, D]`` at the rows ``rows [B, K]``, where they are valid."""
    index = rows[..., None].expand_as(short)
    if valid is not None:  # filler rows are rows of their own, each once: they keep what they have
        short = short.where(valid[..., None], full.gather(1, index))
    return full.scatter(1, index, short)


def restore_rows(short: Tensor, rows: Tensor, valid: Tensor | None, length: int) -> Tensor:
    """Full-length states ``[B, length, D]``: a row that was dropped outputs what its kept predecessor outputs."""
    slot = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
    if valid is not None:
        slot = slot.masked_fill(~valid, 0)
    behind = torch.zeros(rows.shape[0], length, dtype=torch.long, device=rows.device)
    behind = behind.scatter(1, rows, slot).cummax(dim=1).values
    return gather_rows(short, behind)
