"""Every layer chooses its keys anew, of candidates that run in the first layers and then stop.

The candidates are the vision tokens that the cuts before left. In each layer those that some row of the question looks
at most are keys of the text, and one more key stands for the others: the mean of their keys and of their values, as
heavy as they are together. The cache holds these alone. Candidates see each other whole while they run; from one layer
on text runs alone, beside keys and values that each layer makes, by its own norm, projections and rotary tables, of the
states they stopped in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtc.engine.attention.masks import LazyMask, ReducingMask, SplitMask
from vtc.engine.attention.question import largest_attention
from vtc.engine.capture.attention_hook import EndOfLayer
from vtc.engine.kv_cache import RowCacheLayer, without_cache
from vtc.engine.rows import Columns, choose_rows, gather_positions, taken
from vtc.engine.stages import text_rows
from vtc.engine.state import Candidates, LayerPlan, Prefill, Rows
from vtc.errors import UnsupportedModel
from vtc.tokens import sort_padded, top


def candidates_of(p: Prefill) -> Candidates:
    """The candidates behind the last cut; each layer has as many keys of them as the last stage keeps."""
    cut = p.last_cut
    if p.candidates is None or p.candidates[0] is not cut:  # one object for all layers
        place, count = vision_rows(p)
        keys = [0] * p.batch
        for prompt, keep in zip(p.layout.prompts, p.keeps, strict=True):
            keys[prompt] += keep[-1]
        text = text_rows(p)
        p.candidates = cut, Candidates(place, count, keys, text, asking_rows(p, text))
    return p.candidates[1]


def vision_rows(p: Prefill) -> tuple[Rows, list[int]]:
    """The rows of the living vision tokens, newlines included, as they stand behind the last cut; each prompt's
    number."""
    cut, layout = p.last_cut, p.layout
    count = [0] * p.batch
    for prompt, n, m in zip(layout.prompts, p.remaining.count, p.remaining.newlines, strict=True):
        count[prompt] += n + m
    kept = ~layout.text & ~layout.spare
    if cut is not None:
        kept = kept.gather(1, cut.rows)
        kept = kept if cut.valid is None else kept & cut.valid
    inside, valid = choose_rows(kept, ~kept, count)
    sizes = None if cut is None or cut.log_size is None else cut.log_size.gather(1, inside)
    return Rows(inside if cut is None else cut.rows.gather(1, inside), valid, sizes, inside), count


def asking_rows(p: Prefill, text: Rows) -> Tensor:
    """``[B, R]``: which of the text rows stand between the last vision token of their prompt and its end, -1 padded.
    Raises ``UnsupportedModel`` where there is none."""
    row = torch.arange(p.length)
    vision = torch.stack(list(p.ids.values())).any(dim=0)
    asks = ~vision & (row > torch.where(vision, row, -1).amax(dim=1, keepdim=True))
    if p.padding is not None:
        asks &= p.padding
    if p.ends is not None:
        asks &= row < p.ends[:, None]
    if not bool(asks.any(dim=1).all()):
        raise UnsupportedModel(
            "a prompt ends with its picture, and tokens that stop running cannot say what comes next; put words behind "
            "the picture, or use a method whose tokens run to the end, such as divprune"
        )
    most = int(asks.sum(dim=1).max())
    listed = asks.int().argsort(dim=1, descending=True, stable=True)[:, :most].contiguous()
    there = asks.gather(1, listed).to(text.rows.device)
    # Fillers stand between the rows that are there: these alone are looked up.
    rows = text.rows if text.valid is None else text.rows.masked_fill(~text.valid, -1).cummax(dim=1).values
    return torch.searchsorted(rows, listed.to(rows.device)).masked_fill(~there, -1)


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
        """The mask of ``rows`` over the cache and these columns."""
        columns = columns if self.held is None else self.held.then(columns)
        total = self.past + self.p.length
        return LazyMask(self.given, rows, columns, self.p.length, total, self.dtype, self.backend)

    def beside(self, stored: tuple[Tensor, Tensor]) -> ReducingMask:
        """The mask of a layer that runs text alone, beside keys and values ``stored [B, Hk, M, d]`` of candidates."""
        rows = self.of.text.rows
        seen = self.seeing(rows, Columns(rows + self.past))

        def reduce(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Any, None]:
            return (*self.keys(q, k, v, stored, scale), None)

        return ReducingMask(
            self.given, rows, seen.columns, seen.length, seen.total, self.dtype, self.backend, reduce=reduce
        )

    def among(self, cut: Rows | None) -> SplitMask:
        """The mask of a layer that runs text and candidates, the rows of ``cut`` (None: all)."""
        device = self.of.text.rows.device
        all_rows = torch.arange(self.p.length, device=device).expand(self.p.batch, -1)
        own = Columns(all_rows) if cut is None else Columns(cut.rows, cut.valid, cut.log_size)
        every = Columns(own.index + self.past, own.valid, own.log_size)
        whole = self.seeing(own.index, every)

        def text(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Any]:
            before = k.shape[2] - own.index.shape[1]
            new = k[:, :, before:], v[:, :, before:]
            stored = taken(new[0], self.of.place.inside), taken(new[1], self.of.place.inside)
            k = torch.cat([k[:, :, :before], taken(new[0], self.of.text.inside)], dim=2)
            v = torch.cat([v[:, :, :before], taken(new[1], self.of.text.inside)], dim=2)
            return self.keys(q, k, v, stored, scale)

        return SplitMask(whole, self.of.place, self.of.text, text)

    def keys(
        self, q: Tensor, k: Tensor, v: Tensor, stored: tuple[Tensor, Tensor], scale: float
    ) -> tuple[Tensor, Tensor, LazyMask | Tensor | None]:
        """Keys and values ``[B, Hk, C, d]`` of the cache and the text, with those of the candidates that are keys, and
        how the text rows ``q`` see them."""
        of, vision = self.of, columns_of(self.of.place, self.past)
        text = Columns(of.text.rows + self.past, of.text.valid)
        if of.keys != of.count:
            if self.plan.chosen is None:
                with self.p.clock:
                    self.plan.chosen = self._choose(vision.then(text), q, k, stored[0], scale)
            vision, stored = chosen_of(vision, stored, self.plan.chosen, of)
        columns = vision.then(text)
        order = columns.index.argsort(dim=1, stable=True)
        before = k.shape[2] - q.shape[2]
        k, v = (in_order(own, others, order, before) for own, others in zip((k, v), stored, strict=True))
        mask = self.seeing(of.text.rows, columns.each(lambda t: t.gather(1, order)))
        if self.layer is not None:
            self.layer.hold(mask.columns, k, v, self.p.behind)
        return k, v, mask.handed

    @torch.no_grad()
    def _choose(self, columns: Columns, q: Tensor, k: Tensor, stored: Tensor, scale: float) -> Tensor:
        """``[B, K]``, -1 padded: the candidates that the question's rows look at most, over all keys there are."""
        of, before, tokens = self.of, k.shape[2] - q.shape[2], stored.shape[2]
        there, at = of.asking >= 0, of.asking.clamp(min=0)
        bias = self.seeing(of.text.rows.gather(1, at), columns).additive
        every = torch.cat([k[:, :, :before], stored, k[:, :, before:]], dim=2)
        most = largest_attention(taken(q, at), every, bias, there, scale)[:, before : before + tokens]
        valid = torch.ones_like(most, dtype=torch.bool) if of.place.valid is None else of.place.valid
        return sort_padded(top(most, [n - mean for n, mean in zip(of.keys, of.with_mean, strict=True)], valid))


def columns_of(rows: Rows, past: int) -> Columns:
    """The columns that ``rows`` of a forward are behind ``past`` others. A filler weighs nothing: as a column it has
    the index of a row that may look at itself."""
    log_size = rows.log_size
    if rows.valid is not None:
        log_size = torch.zeros(rows.rows.shape, device=rows.rows.device) if log_size is None else log_size
        log_size = log_size.masked_fill(~rows.valid, -torch.inf)
    return Columns(rows.rows + past, rows.valid, log_size)


def chosen_of(
    columns: Columns, stored: tuple[Tensor, Tensor], chosen: Tensor, of: Candidates
) -> tuple[Columns, tuple[Tensor, Tensor]]:
    """Columns, keys and values of the candidates that ``chosen [B, K]`` names, and of the mean of the others."""
    at, there = chosen.clamp(min=0), chosen >= 0
    exact = torch.promote_types(stored[0].dtype, torch.float32)
    zero = torch.zeros(columns.index.shape, dtype=exact, device=at.device)
    sizes = zero if columns.log_size is None else columns.log_size.to(exact)
    k, v = (taken(x, at) for x in stored)
    out = Columns(columns.index.gather(1, at), there, sizes.gather(1, at).masked_fill(~there, -torch.inf))
    if not any(of.with_mean):
        return out, (k, v)
    weight = sizes.exp().scatter(1, at, torch.where(there, 0.0, sizes.exp().gather(1, at)))  # of the others
    weight = weight * torch.tensor(of.with_mean, device=at.device)[:, None]
    total = weight.sum(dim=1, keepdim=True)
    share = (weight / total.clamp(min=1.0))[:, None, :, None]
    means = ((x * share.to(x.dtype)).sum(dim=2, keepdim=True) for x in stored)
    last = columns.index.masked_fill(sizes == -torch.inf, 0).amax(dim=1, keepdim=True)
    mean = Columns(last, total > 0, total.log())
    k, v = (torch.cat([x, y], dim=2) for x, y in zip((k, v), means, strict=True))
    return out.then(mean), (k, v)


def in_order(own: Tensor, others: Tensor, order: Tensor, before: int) -> Tensor:
    """Behind the first ``before`` of ``own [B, Hk, C, d]``: ``others`` and the rest of ``own`` in this order."""
    new = taken(torch.cat([others, own[:, :, before:]], dim=2), order)
    return torch.cat([own[:, :, :before], new], dim=2) if before else new


class NoQueries(nn.Module):
    """In place of a projection whose queries nobody asks for."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(1).expand(*x.shape[:-1], self.width)


@contextmanager
def without_queries(attention: nn.Module) -> Iterator[None]:
    """The module makes keys and values alone; queries, too, where its projections are no plain ones, or a backward pass
    may replay the layer without this."""
    own = attention._modules.get("q_proj")
    if type(own) is not nn.Linear or torch.is_grad_enabled():
        yield
        return
    attention._modules["q_proj"] = NoQueries(own.out_features)
    try:
        yield
    finally:
        attention._modules["q_proj"] = own


def keys_of(
    attention: nn.Module,
    place: Rows,
    states: Tensor,
    p: Prefill,
    past: int,
    forward: Callable,
    kwargs: dict[str, Any],
    backend: str,
) -> tuple[Tensor, Tensor]:
    """``[B, Hk, M, d]`` each: keys and values that one layer makes of ``states [B, M, D]``, run up to its
    ``attention``."""
    found: list[Tensor] = []

    def take(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Any:
        if p.grad and not torch.is_grad_enabled():
            raise UnsupportedModel(
                "under reentrant checkpointing no gradient would reach the states in which vision tokens stop; call "
                'model.gradient_checkpointing_enable({"use_reentrant": False})'
            )
        found.extend((k, v))
        raise EndOfLayer

    columns, total = Columns(place.rows + past), past + p.length
    mask = ReducingMask(None, place.rows, columns, p.length, total, states.dtype, backend, reduce=take)
    quiet = {name: value for name, value in without_cache(kwargs).items() if name != "hidden_states"}
    tables = gather_positions(kwargs.get("position_embeddings"), place.rows, p.length)
    try:
        with without_queries(attention):
            forward(states, **{**quiet, "attention_mask": mask, "position_embeddings": tables, "position_ids": None})
    except EndOfLayer:
        return found[0], found[1]
    raise UnsupportedModel(
        "a decoder layer does not run transformers' attention interface, so tokens that stop cannot be its keys; use a "
        "method whose tokens run to the end, such as divprune"
    )
