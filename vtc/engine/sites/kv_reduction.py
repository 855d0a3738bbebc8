"""The key/value site: every row stays a query, and each decoder layer's keys and values are reduced inside attention.

The cache stores what stays. A merged key and a merged value are size-weighted means over their group, the keys as they
are after their rotation, and stand at the anchor's column: rows of the picture that come before the last token of a
group see that token in it too. Keeping the anchor's key was measured no better (docs/how-it-works.md).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.budget.layer_budget import LayerBudget
from vtc.engine.attention.gates import Gates
from vtc.engine.attention.masks import LazyMask, ReducingMask
from vtc.engine.capture.stage_view import StageView
from vtc.engine.kv_cache import RowCacheLayer
from vtc.engine.rows import Columns
from vtc.engine.stages import listed, make_cut, merge_rows
from vtc.engine.state import Cut, LayerPlan, Prefill
from vtc.errors import UnsupportedModel
from vtc.kernels.gather import gather_rows
from vtc.methods.base import Method
from vtc.models.base import Family
from vtc.signals.base import Signal
from vtc.tokens import Budget, VisionTokens


class KeyReducer:
    """Reduces the keys of decoder layers ``first`` to ``depth - 1``, one forward at a time."""

    def __init__(self, method: Method, budget: Budget, first: int, family: Family):
        self.method, self.budget, self.family = method, budget, family
        self.first, self.depth = first, len(family.layers)

    def mask(
        self,
        p: Prefill,
        plan: LayerPlan,
        index: int,
        layer: RowCacheLayer | None,
        given: Any,
        states: Tensor,
        attn: str,
    ) -> ReducingMask:
        """The attention mask of layer ``index``: all rows and columns, and how to reduce them once k and v are there.
        ``given``: the model's mask; ``attn``: its attention function."""
        rows = torch.arange(p.length, device=states.device).expand(p.batch, -1)
        past = 0 if layer is None else layer.logical
        held = layer.columns(0, p.batch, states.device) if layer is not None and past else None
        new = Columns(rows + past)
        columns = new if held is None else held.then(new)
        reduce = partial(self._reduce, p, plan, index, layer, held, given, attn, states.detach())
        return ReducingMask(given, rows, columns, p.length, past + p.length, states.dtype, attn, reduce=reduce)

    def _reduce(
        self,
        p: Prefill,
        plan: LayerPlan,
        index: int,
        layer: RowCacheLayer | None,
        held: Columns | None,
        given: Any,
        attn: str,
        states: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor, LazyMask | Tensor | None, Gates | None]:
        """Keys and values ``[B, Hk, C, d]``, those of this forward behind the cached ones: what stays of them."""
        if plan.keys is None:
            with p.clock, torch.no_grad():
                plan.keys = self._cut(p, index, k[:, :, k.shape[2] - p.length :].detach(), states)
        cut, total = plan.keys, p.length if layer is None else layer.logical
        every = k, v
        with p.clock:
            k, v = reduce_heads(k, cut, p.length), reduce_heads(v, cut, p.length)
        columns = Columns(cut.rows + (total - p.length), cut.valid, cut.log_size)
        columns = columns if held is None else held.then(columns)
        if layer is not None:
            layer.hold(columns, k, v, p.behind)
        rows = torch.arange(p.length, device=k.device).expand(p.batch, -1)
        subset = LazyMask(given, rows, columns, p.length, total, k.dtype, attn)
        if held is None:
            check_first_rows(p, subset)
        gates = self._gates(p, cut, index, held, subset, every, (k, v), states) if self._learns else None
        weighs = (attn == "sdpa" or subset.flash) and (cut.log_size is not None or k.shape[2] < subset.total)
        return k, v, subset if weighs else subset.mask, gates

    @property
    def _learns(self) -> bool:
        return self.method.learns and torch.is_grad_enabled()

    def _gates(
        self,
        p: Prefill,
        cut: Cut,
        index: int,
        held: Columns | None,
        subset: LazyMask,
        every: tuple[Tensor, Tensor],
        fewer: tuple[Tensor, Tensor],
        states: Tensor,
    ) -> Gates:
        """The gates of a layer: ``every`` key and value there was, and the ``fewer`` that stay, merged ones in place of
        their anchors'; ``subset``: the attention over these."""
        past = every[0].shape[2] - p.length
        tokens, signals = self._seen(p, index, every[0][:, :, past:].detach(), states)
        soft = self.method.in_layer(index - self.first).gates(tokens, signals, cut.keep)
        with torch.no_grad():
            at = torch.arange(p.length, device=soft.device).expand(p.batch, -1)
            kept = torch.zeros_like(at, dtype=torch.bool)
            kept = kept.scatter(1, cut.rows, True if cut.valid is None else cut.valid)
            picture, n = listed(tokens.count, soft.device)
            asked = (tokens.prompt[picture], tokens.row[picture, n])
            there = kept.index_put(asked, torch.ones_like(picture, dtype=torch.bool))
            sizes = (
                None if cut.log_size is None else cut.log_size.new_zeros(at.shape).scatter(1, cut.rows, cut.log_size)
            )
            columns, stays = Columns(at + (subset.total - p.length), there, sizes), kept
            if held is not None:
                columns, stays = held.then(columns), torch.cat([_valid(held), kept], dim=1)
            bias = replace(subset, columns=columns).additive
            rows = (cut.rows + past)[:, None, :, None]
            k, v = (
                x if not cut.reduction.merges else x.scatter(2, rows.expand_as(y[:, :, past:]), y[:, :, past:])
                for x, y in zip(every, fewer, strict=True)
            )
        gate = torch.zeros(at.shape, dtype=soft.dtype, device=soft.device).index_put(asked, soft[picture, n])
        return Gates(pad(gate, (past, 0)), k, v, bias, stays)

    def _cut(self, p: Prefill, index: int, k: Tensor, states: Tensor) -> Cut:
        """Ask the method which keys ``k [B, Hk, n, d]`` of this forward stay in layer ``index``."""
        method, (tokens, signals) = self.method.in_layer(index - self.first), self._seen(p, index, k, states)
        totals = self._spend(p, index, method.need(tokens, signals).tolist())
        return make_cut(p, method, 0, totals, tokens, p.layout.row, signals)[0]

    def _seen(self, p: Prefill, index: int, k: Tensor, states: Tensor) -> tuple[VisionTokens, dict[Signal, Tensor]]:
        """What the method is shown of the keys ``k [B, Hk, n, d]`` of this forward in layer ``index``."""
        layout = p.layout
        keys = gather_rows(k.transpose(1, 2).flatten(2)[layout.prompt], layout.row)
        tokens = VisionTokens(
            keys, layout.valid, p.remaining.size, layout.grid, layout.row, layout.prompt, list(layout.count)
        )
        view = StageView(p, self.family, index, tokens, layout.row, states)
        return tokens, view.signals(self.method.signals(0))

    def _spend(self, p: Prefill, index: int, needs: list[float]) -> list[int]:
        """Keys each picture keeps in layer ``index``."""
        if index == self.first:
            p.layer_budget = LayerBudget.of(p.full, self.budget, index, self.method.weights(self.depth - index))
        return p.layer_budget.spend(index, needs)


def _valid(columns: Columns) -> Tensor:
    return torch.ones_like(columns.index, dtype=torch.bool) if columns.valid is None else columns.valid


def reduce_heads(x: Tensor, cut: Cut, length: int) -> Tensor:
    """Keys or values ``x [B, Hk, C, d]``, of which the last ``length`` are this forward's, with only the rows of
    ``cut`` of these, merged values at the anchors."""
    past, new = x.split([x.shape[2] - length, length], dim=2)
    kept = merge_rows(new.transpose(1, 2).flatten(2), cut).unflatten(2, (x.shape[1], -1)).transpose(1, 2)
    return torch.cat([past, kept], dim=2)


def check_first_rows(p: Prefill, subset: LazyMask) -> None:
    """Raise ``UnsupportedModel`` where a prompt begins with its picture and its first row would see no key at all."""
    first = torch.zeros(p.batch, dtype=torch.int64) if p.padding is None else p.padding.int().argmax(dim=1)
    starts = {entries[0].prompt: int(entries[0].rows[0]) for entries in reversed(p.layout.entries)}
    at = [prompt for prompt, row in starts.items() if row == first[prompt]]
    if not at:
        return
    row = first.to(subset.rows.device)[:, None]
    if not bool(subset.at(row).sees_something[at].all()):
        raise UnsupportedModel(
            "a prompt begins with its picture, and the key of its first row was reduced away, so that row would see "
            "nothing; begin prompts with a word (a BOS token), or use a method that drops rows, such as divprune"
        )
