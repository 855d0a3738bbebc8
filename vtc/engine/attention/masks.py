"""Which keys some rows of a forward see, and with what weight: as a mask, or as the fused kernels take it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vtc.engine.attention.gates import Gates
from vtc.engine.rows import Columns
from vtc.engine.state import Rows
from vtc.errors import UnsupportedModel
from vtc.kernels.gather import gather_rows
from vtc.kernels.merged_attention import causal_end


@dataclass(frozen=True)
class KernelMask:
    """Row i sees the keys before ``end [B, K]`` (None: all) whose ``log_size [B, C]`` is not -inf."""

    end: Tensor | None
    log_size: Tensor


@dataclass(eq=False)
class LazyMask:
    """Some rows and columns of the attention of one forward; each form is made when it is first asked for.

    given: the mask the model built, None (causal), ``[B, T]`` (flash, recurrent layers) or ``[B or 1, h, length, T]``
    bool or additive, with ``T <= total`` (a sliding layer's mask may lack the oldest columns); rows ``[B, K]`` of this
    forward's ``length`` rows, which are the last of ``total`` logical columns; backend: the attention implementation
    ("eager" asks for a float mask, "flash" for ``[B, T]`` or None).
    """

    given: Any
    rows: Tensor
    columns: Columns
    length: int
    total: int
    dtype: torch.dtype
    backend: str

    @property
    def flash(self) -> bool:
        return "flash" in self.backend

    @property
    def handed(self) -> LazyMask | Tensor | None:
        """What ``attend`` is handed: itself, where a kernel may take it or flash attention must, else the mask."""
        return self if self.backend == "sdpa" or self.flash else self.mask

    @property
    def place(self) -> Tensor:
        """``[B, K]``: the logical column of each row."""
        return self.rows + (self.total - self.length)

    @property
    def sizes(self) -> Tensor:
        """``[B, C]``: log of how many tokens each column stands for."""
        columns = self.columns
        zero = torch.zeros(columns.index.shape, device=columns.index.device)
        return zero if columns.log_size is None else columns.log_size

    def at(self, row: Tensor) -> LazyMask:
        """The rows ``row [B, R]`` (indices into ``rows``) of each prompt."""
        return replace(self, rows=self.rows.gather(1, row))

    @cached_property
    def unsized(self) -> Tensor | None:
        """The mask without the sizes."""
        return replace(self, columns=replace(self.columns, log_size=None)).mask

    @cached_property
    def mask(self) -> Tensor | None:
        """``[B, C]`` or ``[B, h, K, C]``, bool or additive, the sizes' logs added; None where the causal rule by index
        is still right. Raises ``UnsupportedModel`` where the backend takes no such mask."""
        given, columns = self.given, self.columns
        if given is not None and not isinstance(given, Tensor):
            raise UnsupportedModel(
                f"attention masks of type {type(given).__name__} (flex attention) are not supported; "
                'call model.set_attn_implementation("sdpa")'
            )
        if self.flash and columns.log_size is not None:
            raise UnsupportedModel(
                "share=True needs a weight per key, which flash attention outside transformers' attention interface "
                'does not take; call model.set_attn_implementation("sdpa") or patch with share=False'
            )
        if self.flash or (given is not None and given.dim() == 2):
            return self._flat()
        if self._by_index and columns.valid is None and columns.log_size is None:
            return None
        return self._dense()

    @property
    def additive(self) -> Tensor:
        """``[B, h, K, C]``: what is added to logits, whatever the backend takes (of a flat mask: the causal rule)."""
        flat = self.given is not None and self.given.dim() == 2
        return replace(self, given=None if flat else self.given, backend="eager")._dense()

    @property
    def _by_index(self) -> bool:
        """Whether the causal rule by index is the rule by place: one row, or as many rows as columns."""
        return self.given is None and self.rows.shape[1] in (1, self.columns.index.shape[1])

    def _flat(self) -> Tensor | None:
        """``[B, C]``, or None where every column counts: flash aligns the last query with the last key by itself."""
        mask, columns = self.given, self.columns
        if mask is None:
            return None if columns.valid is None else columns.valid.long()
        index, older = columns.index, self.total - mask.shape[-1]
        cut = gather_rows(mask, (index - older).clamp(min=0) if older > 0 else index)
        for usable in (columns.valid, index >= older if older > 0 else None):
            cut = cut if usable is None else cut * usable.to(cut.dtype)
        return cut

    def _dense(self) -> Tensor:
        columns, place = self.columns, self.place
        seen, valid = self._visible()
        if valid is not None:
            # A row that is only there to fill the batch sees itself: a softmax over nothing is NaN, and NaN spreads.
            itself = columns.index[:, None, None, :] == place[:, None, :, None]
            usable = valid[:, None, None, :] | itself
            if seen.dtype == torch.bool:
                seen = (seen & usable) | (itself & ~valid[:, None, None, :])
            else:
                seen = seen.masked_fill(~usable, torch.finfo(seen.dtype).min)
        if seen.dtype == torch.bool and (self.backend == "eager" or columns.log_size is not None):
            floor = torch.finfo(self.dtype).min
            seen = torch.zeros(seen.shape, dtype=self.dtype, device=seen.device).masked_fill(~seen, floor)
        if columns.log_size is not None:
            seen = seen + columns.log_size[:, None, None, :].to(seen.dtype)
        return seen

    def _visible(self) -> tuple[Tensor, Tensor | None]:
        """``[B, h, K, C]`` of the given mask (or of the causal rule), and which columns are there at all."""
        index, valid = self.columns.index, self.columns.valid
        if self.given is None:
            return index[:, None, None, :] <= self.place[:, None, :, None], valid
        older = self.total - self.given.shape[-1]  # columns that a sliding window has already left behind
        if older > 0:
            inside = index >= older
            valid = inside if valid is None else valid & inside
            index = (index - older).clamp(min=0)
        mask = gather_rows(self.given, self.rows, dim=2)
        spread = index[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1)
        return mask.gather(3, spread), valid

    @property
    def sees_something(self) -> Tensor:
        """``[B, K]`` bool: whether a row sees any column (a flat mask hides only padding, which is no column here)."""
        flat = self.given is not None and self.given.dim() == 2
        seen, valid = replace(self, given=None if flat else self.given)._visible()
        seen = seen if seen.dtype == torch.bool else seen > torch.finfo(seen.dtype).min / 2
        return (seen if valid is None else seen & valid[:, None, None]).any(dim=-1).all(dim=1)

    @cached_property
    def seen(self) -> KernelMask | None:
        """The same for the fused kernels; None where "the keys before ``end`` that are there" does not say it."""
        columns = self.columns
        sizes = self.sizes
        flat = self._flat() if self.flash or self.given is None or self.given.dim() == 2 else None
        if flat is not None or self.given is None:
            end = None if self.rows.shape[1] == 1 else causal_end(self.place, columns.index)
            return KernelMask(end, sizes if flat is None else sizes.masked_fill(flat == 0, -torch.inf))
        visible, valid = self._visible()
        if visible.dtype != torch.bool or visible.shape[1] != 1:
            return None
        visible = visible[:, 0] if valid is None else visible[:, 0] & valid[:, None]
        there = visible.any(dim=1)
        sizes = sizes.masked_fill(~there, -torch.inf)
        if self.rows.shape[1] == 1:
            return KernelMask(None, sizes)
        order = torch.arange(1, visible.shape[2] + 1, device=visible.device)
        end = (visible * order).amax(dim=2)
        same = visible == (there[:, None] & (order <= end[..., None]))
        return KernelMask(end.int(), sizes) if bool(same.all()) else None


@dataclass(eq=False)
class ReducingMask(LazyMask):
    """All rows and columns of a forward, before attention changes its keys: ``reduce(q, k, v, scale)`` gives the keys
    and values that its rows see, the mask they have, and, where what stays is learned, its ``Gates``."""

    reduce: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor, LazyMask | Tensor | None, Gates | None]] = (
        field(kw_only=True)
    )


@dataclass(eq=False)
class SplitMask:
    """Two kinds of rows of one forward: ``first`` see the keys and values, as the mask says, that ``vision(k, v)``
    gives; ``second`` those that ``text(q, k, v, scale)`` gives for their queries. ``inside`` of each: where they stand
    among all rows, whose own mask is ``whole``."""

    whole: LazyMask
    first: Rows
    second: Rows
    vision: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, LazyMask | Tensor | None]]
    text: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor, LazyMask | Tensor | None]]


Mask = Tensor | LazyMask | SplitMask | None


def row_bias(mask: Mask, row: Tensor, rows: int, keys: int) -> Tensor:
    """``[B, R, keys]``: what each row of ``row [B, R]``, of ``rows``, adds to its logits, -inf where it sees nothing.

    mask is what an attention function gets: None (causal by index, the last query sees the last key), ``[B, keys]`` or
    ``[B or 1, 1, rows, keys]``, bool or additive, or a ``LazyMask``.
    """
    if isinstance(mask, SplitMask):
        mask = mask.whole
    if isinstance(mask, LazyMask):
        some = replace(mask.at(row), backend="sdpa")
        if some.seen is None:
            return row_bias(some.mask, torch.arange(row.shape[1], device=row.device).expand_as(row), row.shape[1], keys)
        by_place = some.given is None or some.given.dim() == 2  # one row alone is not always the last
        behind = causal_end(some.place, some.columns.index) if by_place else some.seen.end
        end = keys if behind is None else behind[..., None]
        bias = some.seen.log_size[:, None].expand(-1, row.shape[1], -1)
        return bias.masked_fill(torch.arange(keys, device=row.device) >= end, -torch.inf)
    if mask is not None and mask.dim() == 4:
        seen = gather_rows(mask[:, 0], row)
    else:
        seen = torch.arange(keys, device=row.device) <= (row + keys - rows)[..., None]
        seen = seen if mask is None else seen & mask.bool()[:, None]
    if seen.dtype != torch.bool:
        return seen.float()
    return torch.zeros(seen.shape, device=row.device).masked_fill(~seen, -torch.inf)
