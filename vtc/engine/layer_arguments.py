"""What a decoder layer is called with when rows are missing: the mask and the rotary tables of the rows that are there,
for the columns that its cache holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtc.engine.attention.masks import LazyMask
from vtc.engine.kv_cache import cache_given, row_layer, stored
from vtc.engine.rows import Columns, gather_positions
from vtc.engine.state import Prefill, Rows
from vtc.models.base import Family


class LayerArguments:
    """Keyword arguments of one model's decoder layers. ``weighs``: the layers whose attention takes a ``LazyMask`` for
    a mask."""

    def __init__(self, family: Family):
        self.family = family
        self.weighs: set[int] = set()
        self.cut_once: dict[tuple, tuple[Any, Any]] = {}

    def forget(self) -> None:
        """Before another forward."""
        self.cut_once = {}

    @property
    def backend(self) -> str:
        return self.family.decoder.config._attn_implementation or "eager"

    def on_rows(self, p: Prefill, cut: Rows, index: int, states: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The layer's keyword arguments for the rows of ``cut``; its cache layer is told what comes."""
        layer = row_layer(cache_given(kwargs), index)
        past = 0 if layer is None else layer.logical
        new = self._once(  # one object for all layers: masks are cut once a forward at decode, too
            ("columns", id(cut), past),
            cut,
            lambda: Columns(cut.rows + past if past else cut.rows, cut.valid, cut.log_size),
        )
        mask = kwargs.get("attention_mask")
        held = None if layer is None else layer.kept

        def subset() -> LazyMask:
            columns = new if layer is None else layer.columns(new, p.batch, cut.rows.device)
            return LazyMask(mask, cut.rows, columns, p.length, past + p.length, states.dtype, self.backend)

        if layer is not None:
            prompt = self._once(("prompt", id(new)), new, lambda: new.without_last(p.behind))
            layer.expect(new, p.length, prompt)
        key = ("mask", id(mask), id(cut), id(held), past)
        return {
            **self.placed(p, cut, kwargs),
            "attention_mask": self._mask(index, self._once(key, (mask, cut, held), subset)),
        }

    def placed(self, p: Prefill, rows: Rows, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments with the positions of these rows."""
        tables = kwargs.get("position_embeddings")
        cut = self._once(
            ("tables", id(tables), id(rows)), (tables, rows), lambda: gather_positions(tables, rows.rows, p.length)
        )
        return {**kwargs, "position_embeddings": cut, "position_ids": None}  # gaps would look like packed sequences

    def on_all_rows(self, index: int, states: Tensor, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The same where all rows of this forward run, over a cache that may hold fewer columns than it reports."""
        layer = stored(cache_given(kwargs), index)
        if layer is None:
            return kwargs
        batch, length = states.shape[:2]
        layer.expect(None, length)
        if layer.kept is None and layer.tail == layer.logical:
            return kwargs
        mask, held = kwargs.get("attention_mask"), layer.kept
        if mask is None and length == 1 and (held is None or (held.valid is None and held.log_size is None)):
            return kwargs

        def subset() -> LazyMask:
            rows = torch.arange(length, device=states.device).expand(batch, -1)
            columns = layer.columns(length, batch, states.device)
            return LazyMask(mask, rows, columns, length, layer.logical + length, states.dtype, self.backend)

        key = ("mask", id(mask), id(held and held.index), layer.logical, layer.tail, length)
        return {**kwargs, "attention_mask": self._mask(index, self._once(key, (mask, held), subset))}

    def _mask(self, index: int, subset: LazyMask) -> LazyMask | Tensor | None:
        """The mask of layer ``index``: where sizes matter and its attention is ours, the subset itself, so that no
        mask need be made."""
        if not self.family.attends(index):
            return subset.unsized
        ours = index in self.weighs and (subset.flash or subset.backend == "sdpa")
        return subset if ours and subset.columns.log_size is not None else subset.mask

    def _once(self, key: tuple, alive: Any, build: Callable[[], Any]) -> Any:
        """Masks and tables are cut once a forward; ``alive`` holds the objects behind the ids in ``key``."""
        if key not in self.cut_once:
            self.cut_once[key] = (build(), alive)
        return self.cut_once[key][0]
