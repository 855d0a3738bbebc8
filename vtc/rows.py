"""Row and column subsets as pure functions: gather states and positions, cut masks, put rows back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtc.errors import UnsupportedModel


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


def gather_rows(x: Tensor, rows: Tensor, dim: int = 1) -> Tensor:
    """Rows ``rows [B, K]`` of ``x`` along ``dim``; the batch dimension (0) of ``x`` is B or 1."""
    x = x.expand(rows.shape[0], *x.shape[1:])
    index = rows.view(rows.shape[0], *[1] * (dim - 1), rows.shape[1], *[1] * (x.dim() - dim - 1))
    return x.gather(dim, index.expand(*x.shape[:dim], rows.shape[1], *x.shape[dim + 1 :]))


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


def cut_mask(
    mask: Any, rows: Tensor, columns: Columns, length: int, total: int, dtype: torch.dtype, backend: str
) -> Tensor | None:
    """The attention mask for a subset of rows and columns of the one the model built.

    mask: None (causal), ``[B, T]`` (flash, recurrent layers) or ``[B or 1, h, length, T]`` bool or additive, with
    ``T <= total`` (a sliding layer's mask may lack the oldest columns); rows ``[B, K]`` of this forward's ``length``
    rows, which are the last of ``total`` logical columns. ``backend``: the attention implementation; "eager" asks for
    a float mask, "flash" for ``[B, T]`` or None. Returns None where the causal rule by index is still right.
    """
    index, valid = columns.index, columns.valid
    if mask is not None and not isinstance(mask, Tensor):
        raise UnsupportedModel(
            f"attention masks of type {type(mask).__name__} (flex attention) are not supported; "
            'call model.set_attn_implementation("sdpa")'
        )
    if "flash" in backend and columns.log_size is not None:
        raise UnsupportedModel(
            "share=True needs a bias per key, which flash attention does not take; "
            'call model.set_attn_implementation("sdpa") or patch with share=False'
        )
    if "flash" in backend or (mask is not None and mask.dim() == 2):
        return _flat_mask(mask, columns, total)
    if mask is None and valid is None and columns.log_size is None and rows.shape[1] in (1, index.shape[1]):
        return None
    place = rows + (total - length)  # the logical column of each row
    if mask is None:
        seen = index[:, None, None, :] <= place[:, None, :, None]
    else:
        seen, valid = _gather_mask(mask, rows, index, valid, total)
    if valid is not None:
        # A row that is only there to fill the batch sees itself: a softmax over nothing is NaN, and NaN spreads.
        usable = valid[:, None, None, :] | (index[:, None, None, :] == place[:, None, :, None])
        seen = (seen & usable) if seen.dtype == torch.bool else seen.masked_fill(~usable, torch.finfo(seen.dtype).min)
        if seen.dtype == torch.bool:
            seen = seen | ((index[:, None, None, :] == place[:, None, :, None]) & ~valid[:, None, None, :])
    if seen.dtype == torch.bool and (backend == "eager" or columns.log_size is not None):
        seen = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
    if columns.log_size is not None:
        seen = seen + columns.log_size[:, None, None, :].to(seen.dtype)
    return seen


def _flat_mask(mask: Tensor | None, columns: Columns, total: int) -> Tensor | None:
    """``[B, C]``, or None where every column counts: flash aligns the last query with the last key by itself."""
    if mask is None:
        return None if columns.valid is None else columns.valid.long()
    index, older = columns.index, total - mask.shape[-1]
    cut = gather_rows(mask, (index - older).clamp(min=0) if older > 0 else index)
    for usable in (columns.valid, index >= older if older > 0 else None):
        cut = cut if usable is None else cut * usable.to(cut.dtype)
    return cut


def _gather_mask(
    mask: Tensor, rows: Tensor, index: Tensor, valid: Tensor | None, total: int
) -> tuple[Tensor, Tensor | None]:
    older = total - mask.shape[-1]  # columns that a sliding window has already left behind
    if older > 0:
        inside = index >= older
        valid = inside if valid is None else valid & inside
        index = (index - older).clamp(min=0)
    mask = gather_rows(mask, rows, dim=2)
    spread = index[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1)
    return mask.gather(3, spread), valid


def choose_rows(kept: Tensor, spare: Tensor, count: list[int]) -> tuple[Tensor, Tensor | None]:
    """``(rows [B, K] ascending, valid [B, K] or None)`` for ``kept [B, N]``, which holds ``count[b]`` rows of prompt b.

    Prompts with fewer than K = max(count) rows are filled with rows that are not kept, first from ``spare [B, N]``.
    """
    wide = max(count)
    rank = torch.where(kept, 0, torch.where(spare, 1, 2))
    rows = rank.argsort(dim=1, stable=True)[:, :wide].sort(dim=1).values
    return rows, (None if min(count) == wide else kept.gather(1, rows))


def restore_rows(short: Tensor, rows: Tensor, valid: Tensor | None, length: int) -> Tensor:
    """Full-length states ``[B, length, D]``: a row that was dropped outputs what its kept predecessor outputs."""
    slot = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
    if valid is not None:
        slot = slot.masked_fill(~valid, 0)
    behind = torch.zeros(rows.shape[0], length, dtype=torch.long, device=rows.device)
    behind = behind.scatter(1, rows, slot).cummax(dim=1).values
    return gather_rows(short, behind)
