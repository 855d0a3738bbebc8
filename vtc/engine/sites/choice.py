"""Which candidates are keys of one layer: those that the question's rows look at most, and the mean of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtc.engine.attention.masks import LazyMask, ReducingMask, SplitMask
from vtc.engine.attention.question import largest_attention
from vtc.engine.kv_cache import RowCacheLayer
from vtc.engine.memory import Memory, Quota, Stored, without
from vtc.engine.rows import Columns, taken
from vtc.engine.state import Candidates, GoingOn, LayerPlan, Prefill, Rows
from vtc.tokens import scatter_valid, sort_padded, top


@dataclass(eq=False)
class Choice:
    """What text sees in one layer. ``held``: columns of the cache before this forward, ``past`` logical ones;
    ``given``: the model's own mask; ``backend``: its attention function."""

    p: Prefill
    plan: LayerPlan
    of: Candidates
    layer: RowCacheLayer | None
    held: Columns | None
    past: int
    given: Any
    backend: str
    dtype: torch.dtype

    def seeing(self, rows: Tensor, columns: Columns) -> LazyMask:
        """The mask of ``rows`` over these columns."""
        return LazyMask(self.given, rows, columns, self.p.length, self.past + self.p.length, self.dtype, self.backend)

    def behind_cache(self, columns: Columns) -> Columns:
        return columns if self.held is None else self.held.then(columns)

    def beside(self, stored: tuple[Tensor, Tensor] | None) -> ReducingMask:
        """The mask of a layer that runs text alone, beside keys and values ``stored [B, Hk, M, d]`` of candidates
        (None: there are none but those that the cache remembers)."""
        rows = self.of.text.rows
        seen = self.seeing(rows, self.behind_cache(Columns(rows + self.past)))

        def reduce(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Any, None]:
            own = (k[:, :, :0], v[:, :, :0]) if stored is None else stored
            return (*self.keys(q, k, v, own, scale), None)

        return ReducingMask(
            self.given, rows, seen.columns, seen.length, seen.total, self.dtype, self.backend, reduce=reduce
        )

    def among(self, cut: Rows | None) -> SplitMask:
        """The mask of a layer that runs text and all candidates, the rows of ``cut`` (None: all)."""
        device = self.of.text.rows.device
        all_rows = torch.arange(self.p.length, device=device).expand(self.p.batch, -1)
        own = Columns(all_rows) if cut is None else Columns(cut.rows, cut.valid, cut.log_size)
        every = Columns(own.index + self.past, own.valid, own.log_size)
        whole = self.seeing(own.index, self.behind_cache(every))
        place, text = self.of.place, self.of.text

        def vision(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Any]:
            return k, v, whole.at(place.inside).handed

        def chosen(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Any]:
            return self.keys(q, *self.of_text(k, v, text.inside), self.of_vision(k, v, place.inside), scale)

        return SplitMask(whole, place, text, vision, chosen)

    def among_some(self, going: GoingOn, stopped: tuple[Tensor, Tensor]) -> SplitMask:
        """The mask of a layer that runs text and some candidates, beside keys and values ``stopped [B, Hk, M, d]`` of
        the others."""
        rows, place, text = going.rows, going.vision, self.of.text
        own = columns_of(rows, self.past)
        rest = columns_of(going.stopped, self.past)
        every = self.behind_cache(own).then(rest)
        order = every.index.argsort(dim=1, stable=True)
        seen = self.seeing(place.rows, every.each(lambda t: t.gather(1, order)))

        def vision(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Any]:
            k, v = (taken(torch.cat(pair, dim=2), order) for pair in zip((k, v), stopped, strict=True))
            return k, v, seen.handed

        def chosen(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Any]:
            run = self.of_vision(k, v, place.inside)
            k_made, v_made = (taken(torch.cat(pair, dim=2), going.order) for pair in zip(run, stopped, strict=True))
            return self.keys(q, *self.of_text(k, v, text.inside), (k_made, v_made), scale)

        return SplitMask(self.seeing(rows.rows, self.behind_cache(own)), place, text, vision, chosen)

    def of_text(self, k: Tensor, v: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the cache and of those rows."""
        before = 0 if self.held is None else self.held.index.shape[1]
        k, v = (torch.cat([x[:, :, :before], taken(x[:, :, before:], inside)], dim=2) for x in (k, v))
        return k, v

    def of_vision(self, k: Tensor, v: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Those of these rows alone."""
        before = 0 if self.held is None else self.held.index.shape[1]
        return taken(k[:, :, before:], inside), taken(v[:, :, before:], inside)

    def keys(
        self, q: Tensor, k: Tensor, v: Tensor, stored: tuple[Tensor, Tensor], scale: float
    ) -> tuple[Tensor, Tensor, LazyMask | Tensor | None]:
        """Keys and values ``[B, Hk, C, d]`` of the cache and the text, with those of the candidates that are keys, and
        how the text rows ``q`` see them."""
        of, before, quota = self.of, k.shape[2] - q.shape[2], self.of.quota
        candidates = Stored(columns_of(of.place, self.past), *stored)
        text = Stored(Columns(of.text.rows + self.past, of.text.valid), k[:, :, before:], v[:, :, before:])
        memory = None if self.layer is None else self.layer.memory
        if self.held is not None:
            older = Stored(self.held, k[:, :, :before], v[:, :, :before])
            if memory is not None:
                older, remembered = memory.apart(older)
                candidates, quota = candidates.then(remembered), memory.quota + quota
            text = older.then(text)
        keys, chosen = candidates, None
        if of.chooses or memory is not None:
            if self.plan.chosen is None:
                with self.p.clock:
                    self.plan.chosen = self._choose(candidates, text, quota, q, scale)
            chosen = self.plan.chosen
            keys = chosen_of(candidates, chosen, quota)
        seen = keys.then(text)
        order = seen.columns.index.argsort(dim=1, stable=True)
        seen = seen.at(order)
        if self.layer is not None:
            memory = None
            if self.p.remembers and chosen is not None:
                memory = memory_of(candidates, chosen, keys, order, quota)
            self.layer.hold(seen.columns, seen.keys, seen.values, self.p.behind, memory)
        return seen.keys, seen.values, self.seeing(of.text.rows, seen.columns).handed

    @torch.no_grad()
    def _choose(self, candidates: Stored, text: Stored, quota: Quota, q: Tensor, scale: float) -> Tensor:
        """``[B, K]``, -1 padded: the candidates that the question's rows look at most, over all keys there are."""
        of, every = self.of, candidates.then(text)
        there, at = of.asking >= 0, of.asking.clamp(min=0)
        if there.shape[1] == 0:  # nobody asks yet
            return of.asking
        bias = self.seeing(of.text.rows.gather(1, at), every.columns).additive
        most = largest_attention(taken(q, at), every.keys, bias, there, scale)[:, : candidates.keys.shape[2]]
        valid = candidates.columns.valid
        valid = torch.ones_like(most, dtype=torch.bool) if valid is None else valid
        wanted = quota.keys - quota.with_mean.to(quota.keys.dtype)
        return sort_padded(top(most, wanted, valid, min(quota.most, most.shape[1])))


def columns_of(rows: Rows, past: int) -> Columns:
    """The columns that ``rows`` of a forward are behind ``past`` others. A filler weighs nothing: as a column it has
    the index of a row that may look at itself."""
    log_size = rows.log_size
    if rows.valid is not None:
        log_size = torch.zeros(rows.rows.shape, device=rows.rows.device) if log_size is None else log_size
        log_size = log_size.masked_fill(~rows.valid, -torch.inf)
    return Columns(rows.rows + past, rows.valid, log_size)


def chosen_of(candidates: Stored, chosen: Tensor, quota: Quota) -> Stored:
    """The candidates that ``chosen [B, K]`` names, and the mean of the others."""
    columns, at, there = candidates.columns, chosen.clamp(min=0), chosen >= 0
    exact = torch.promote_types(candidates.keys.dtype, torch.float32)
    zero = torch.zeros(columns.index.shape, dtype=exact, device=at.device)
    sizes = zero if columns.log_size is None else columns.log_size.to(exact)
    k, v = taken(candidates.keys, at), taken(candidates.values, at)
    own = Columns(columns.index.gather(1, at), there, sizes.gather(1, at).masked_fill(~there, -torch.inf))
    if not quota.mean or at.shape[1] == 0:
        return Stored(own, k, v)
    weight = scatter_valid(sizes.exp(), chosen, torch.zeros_like(at)) * quota.with_mean[:, None]  # of the others
    total = weight.sum(dim=1, keepdim=True)
    share = (weight / total.clamp(min=1.0))[:, None, :, None]
    means = ((x * share.to(x.dtype)).sum(dim=2, keepdim=True) for x in (candidates.keys, candidates.values))
    last = columns.index.masked_fill(sizes == -torch.inf, 0).amax(dim=1, keepdim=True)
    return Stored(own, k, v).then(Stored(Columns(last, total > 0, total.log()), *means))


def memory_of(candidates: Stored, chosen: Tensor, keys: Stored, order: Tensor, quota: Quota) -> Memory:
    """What a cache layer keeps besides ``keys``, the first of those that it holds in this ``order``."""
    left = quota.left + quota.mean if chosen.shape[1] else candidates.keys.shape[2]
    at = order.argsort(dim=1)[:, : keys.keys.shape[2]]
    return Memory(without(candidates, chosen, left), at, chosen.shape[1], quota)
