"""Hears what methods want to see: the tower's attention while it runs, some rows of a decoder layer's."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.engine.capture.raters import choose_raters, gravity
from vtc.engine.capture.taps import Mask, Stop, row_attention, row_bias, tower_received
from vtc.engine.kv_cache import RowCacheLayer, snapshot
from vtc.engine.masks import Subset
from vtc.engine.rows import Columns, gather_positions
from vtc.engine.stages import listed, text_rows
from vtc.engine.state import Pass, Rows
from vtc.errors import NotReduced, UnsupportedModel
from vtc.kernels.gather import gather_rows
from vtc.kernels.match import unit
from vtc.kernels.received_attention import BLOCK, received_attention
from vtc.models.base import Family, TowerRun
from vtc.signals.signals import (
    KeyNorm,
    QuestionState,
    RaterAttention,
    Signal,
    TextAttention,
    TextPivots,
    TextRelevance,
    TokenStates,
    TowerAttention,
    TowerGroups,
    TowerKeys,
)
from vtc.tokens import top

PIXELS = ("pixel_values", "pixel_values_images", "pixel_values_videos")


class Listener:
    """The taps' other end. ``runs``: what each modality's tower did last."""

    def __init__(self, family: Family):
        self.family = family
        self.runs: dict[str, TowerRun] = {}
        self.running: TowerRun | None = None  # what runs now
        self._probe: tuple[Tensor, Tensor, Tensor | None] | None = None  # (row, its bias, cached keys)
        self._probed: Tensor | None = None

    def tower(self, modality: str, arguments: dict[str, Any], call: Callable[[], Any]) -> Any:
        """Around ``get_image_features``: hear the tower's attention, note what came out."""
        if self.running is not None:  # Qwen3-VL reads a video through its picture path
            return call()
        run = self.running = TowerRun(modality, arguments)
        try:
            output = call()
        finally:
            self.running = None
        run.counts, run.output = self.family.entries(output), _references(output)
        for name in PIXELS:  # only their shapes are asked for from here on
            if isinstance(arguments.get(name), Tensor):
                arguments[name] = arguments[name].to("meta")
        self.runs[modality] = run
        return output

    def hear_tower(self, signal: Signal, q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> None:
        """An attention call of a tapped tower layer."""
        if self.running is not None and isinstance(signal, (TowerAttention, TowerKeys)):
            if signal.joined:
                q, k = joined_heads(q, q.shape[1]), joined_heads(k, q.shape[1])
                scale = q.shape[3] ** -0.5
            if isinstance(signal, TowerKeys):
                raw = k.mean(dim=1)
            else:
                raw = tower_received(q, k, mask, self.family.tower_cls if signal.rows == "cls" else 0, scale)
            self.running.captured.setdefault(signal, []).append(raw)

    def hear_decoder(self, p: Pass | None, layer: int, q: Tensor, k: Tensor, mask: Mask, scale: float) -> None:
        """An attention call of a tapped decoder layer: keep what its last row attends to, or end a probe."""
        if self._probe is not None:
            row, bias, past = self._probe
            k = k if past is None else torch.cat([past, k], dim=2)
            self._probed = row_attention(q, k, row, bias, scale)[..., k.shape[2] - q.shape[2] :]
            raise Stop
        key = (layer, TextAttention("previous"))
        if p is None or not p.over or key in p.heard:
            return
        with p.clock:
            row = last_row(p, p.plans[layer].runs or p.plans[layer].rows).to(q.device)
            bias = row_bias(mask, row[:, None], q.shape[2], k.shape[2])[:, 0]
            p.heard[key] = row_attention(q, k, row, bias, scale)[..., k.shape[2] - q.shape[2] :]

    def hear_input(self, p: Pass, states: Tensor) -> None:
        """The decoder's input, of which each prompt's raters are chosen: ``p.raters``."""
        text = text_rows(p)
        picture, n = listed(p.layout.count, states.device)
        row = p.layout.row[picture, n]
        vision = torch.full((p.batch, p.length), -1, device=states.device)
        vision[p.layout.prompt[picture], row] = row
        behind = text.rows > vision.amax(dim=1, keepdim=True)
        behind = behind if text.valid is None else behind & text.valid
        last = last_row(p, p.last_cut).where(~behind.any(dim=1), -1)
        p.raters = torch.cat([choose_raters(states.detach(), vision, text.rows, behind), last[:, None]], dim=1)

    def hear_raters(
        self, p: Pass | None, layer: int, signal: RaterAttention, q: Tensor, k: Tensor, mask: Mask, scale: float
    ) -> None:
        """An attention call of a tapped decoder layer: keep what its raters attend to."""
        if self._probe is None and p is not None and p.over and (layer, signal) not in p.heard:
            with p.clock:
                p.heard[layer, signal] = rater_attention(p, signal, q, k, mask, scale)

    def hear_keys(self, p: Pass | None, layer: int, k: Tensor, rows: int) -> None:
        """The keys of a tapped decoder layer, of which the last ``rows`` are this forward's: keep their norms."""
        key = (layer, KeyNorm())
        if self._probe is None and p is not None and p.over and key not in p.heard:
            with p.clock:
                p.heard[key] = l1_norm(k[:, :, k.shape[2] - rows :].transpose(1, 2).flatten(2))

    def _key_norms(self, p: Pass, index: int, states: Tensor) -> Tensor:
        """``[B, n]``: of every row before decoder layer ``index``."""
        if index == 0:
            return l1_norm(states)
        return self.heard(p, index - 1, KeyNorm()).to(states.device)

    def adopt(self, features: dict[str, Any]) -> None:
        """Features computed before this forward: by a run we heard, or else only their lengths are known."""
        if features:
            self.runs = {m: r for m, r in self.runs.items() if features.get(m) is not None}
        for modality, output in features.items():
            run = self.runs.get(modality)
            if output is None or (run is not None and _same(run.output, output)):
                continue
            counts = self.family.entries(output)
            if run is not None and not run.used and sum(counts) < sum(run.counts):
                raise NotReduced(
                    f"this forward brings {sum(counts)} of the {sum(run.counts)} {modality} tokens just encoded: "
                    "chunked prefill would select tokens chunk by chunk; generate without prefill_chunk_size"
                )
            self.runs[modality] = TowerRun(modality, {}, counts)

    def signal(
        self,
        p: Pass,
        signal: Signal,
        index: int,
        position: Tensor,
        states: Tensor,
        forward: Callable,
        kwargs: dict[str, Any],
    ) -> Tensor:
        """The signal on the living tokens before decoder layer ``index``, ``[I, N]`` or ``[I, N, d]``."""
        if isinstance(signal, (TowerAttention, TowerKeys, TowerGroups)):
            values = p.layout.signal(self.family, signal, states.device)
            for cut in p.cuts:  # a later stage sees the survivors' values
                values = gather_rows(values, cut.reduction.anchor.clamp(min=0))
            return values
        if isinstance(signal, TextRelevance):
            return text_relevance(p, states, position)
        if isinstance(signal, RaterAttention):
            by_head = gather_rows(self.heard(p, index - 1, signal).to(states.device)[p.layout.prompt], position)
            return by_head.masked_fill(~p.alive.valid[..., None], 0.0)
        if isinstance(signal, TextPivots):
            return text_pivots(p, states, self._key_norms(p, index, states), signal.count)
        if isinstance(signal, KeyNorm):
            scores = self._key_norms(p, index, states)
            return scores.to(states.device)[p.layout.prompt].gather(1, position).masked_fill(~p.alive.valid, 0.0)
        if isinstance(signal, (TokenStates, QuestionState)):
            raise UnsupportedModel(f"{signal} is known only where keys are reduced; use TextAttention")
        if signal.of == "next":
            scores = self._rank_next(p, index, states, forward, kwargs)
        else:
            scores = self.heard(p, index - 1, TextAttention())
        return received(p, signal, scores.to(states.device), position)

    @staticmethod
    def heard(p: Pass, layer: int, signal: Signal) -> Tensor:
        if (layer, signal) not in p.heard:
            raise NotReduced(f"{signal} was not heard in layer {layer}: its attention did not run through the patch")
        return p.heard[layer, signal]

    def _rank_next(self, p: Pass, index: int, states: Tensor, forward: Callable, kwargs: dict[str, Any]) -> Tensor:
        """``[B, H, n]``: run layer ``index`` only up to its q and k, and take the last row's attention over these and
        the cached keys. No MLP; nothing is written to the cache."""
        before = p.last_cut
        rows = torch.arange(p.length, device=states.device).expand(p.batch, -1) if before is None else before.rows
        row = last_row(p, before).to(states.device)
        quiet = {**kwargs, "attention_mask": None, "past_key_values": None, "position_ids": None}
        quiet["position_embeddings"] = gather_positions(kwargs.get("position_embeddings"), rows, p.length)
        quiet.pop("hidden_states", None)
        held = snapshot(kwargs.get("past_key_values"), index)
        bias = self._row_bias(p, rows, row, kwargs.get("attention_mask"), held, states.dtype)
        self._probe = (row, bias, None if held is None else held.keys)
        layer = self.family.layers[index]
        training = [module for module in layer.modules() if module.training]
        try:
            for module in training:  # no dropout in a ranking, and no random numbers that a replay would not draw
                module.training = False
            forward(states, **quiet)
        except Stop:
            return self._probed  # type: ignore[return-value]
        finally:
            self._probe = self._probed = None
            for module in training:
                module.training = True
        raise UnsupportedModel(
            f"decoder layer {index} does not run transformers' attention interface, so its tokens cannot be ranked; "
            "use a method at the decoder's input, such as divprune"
        )

    def _row_bias(
        self, p: Pass, rows: Tensor, row: Tensor, mask: Any, held: RowCacheLayer | None, dtype: torch.dtype
    ) -> Tensor:
        """``[B, m]``: what each prompt's last row adds to its logits over cached keys and ``rows``."""
        before, past = p.last_cut, 0 if held is None else held.logical
        new = Columns(rows + past, before.valid if before else None, before.log_size if before else None)
        columns = new if held is None else held.columns(new, p.batch, rows.device)
        subset = Subset(mask, rows, columns, p.length, past + p.length, dtype, backend="sdpa")
        return row_bias(subset, row[:, None], rows.shape[1], columns.index.shape[1])[:, 0]


def received(p: Pass, signal: TextAttention, scores: Tensor, position: Tensor) -> Tensor:
    """``[I, N]`` or ``[I, N, H]``: what the living tokens at ``position [I, N]`` get of ``scores [B, H, n]``."""
    if not signal.by_head:
        return scores.mean(dim=1)[p.layout.prompt].gather(1, position).masked_fill(~p.alive.valid, 0.0)
    found = gather_rows(scores.transpose(1, 2)[p.layout.prompt], position)
    return found.masked_fill(~p.alive.valid[..., None], 0.0)


def rater_attention(p: Pass, signal: RaterAttention, q: Tensor, k: Tensor, mask: Mask, scale: float) -> Tensor:
    """``[B, n, H]``: attention from each prompt's raters to the n rows of this forward, mean over the raters."""
    batch, n, keys, raters = q.shape[0], q.shape[2], k.shape[2], p.raters.to(q.device)
    rows, place = torch.arange(n, device=q.device).expand(batch, -1), raters
    if p.last_cut is not None:
        rows = p.last_cut.rows.to(q.device)
        place = torch.searchsorted(rows, raters).clamp(max=n - 1).where(raters >= 0, -1)
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    pull = gravity(p.length, q.shape[3], q.device).to(wide) if signal.gravity else None
    share = (raters >= 0).sum(dim=1)[:, None, None].to(wide).reciprocal()
    received = torch.zeros((), device=q.device)
    step = max(1, BLOCK // (batch * keys))
    for row, at in zip(raters.split(step, dim=1), place.split(step, dim=1), strict=True):
        weight = share.expand(-1, at.shape[1], keys)
        if pull is not None:
            apart = (row.clamp(min=0)[..., None] - rows[:, None]).abs()
            weight = weight / pad(pull[apart], (keys - n, 0), value=1.0)
        bias = row_bias(mask, at.clamp(min=0), n, keys)
        received = received + received_attention(q, k, at, log_size=bias, scale=scale, weights=weight)
    return received[:, :, keys - n :].transpose(1, 2)


def l1_norm(x: Tensor) -> Tensor:
    """Of ``x [..., d]``, in float32 (float64 stays)."""
    return x.abs().sum(dim=-1, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def text_pivots(p: Pass, states: Tensor, norms: Tensor, count: int) -> Tensor:
    """``[I, count, D]``: the states of the text rows behind each picture with the largest ``norms [B, n]``."""
    text = text_rows(p)
    behind = text.rows[p.layout.prompt] > p.layout.row.amax(dim=1, keepdim=True)
    behind = behind if text.valid is None else behind & text.valid[p.layout.prompt]
    most = min(count, text.rows.shape[1])
    chosen = top(norms.gather(1, text.inside)[p.layout.prompt], [most] * len(behind), behind)
    found = gather_rows(states[p.layout.prompt], text.inside[p.layout.prompt].gather(1, chosen))
    found = found.masked_fill(~behind.gather(1, chosen)[..., None], torch.nan)
    return pad(found, (0, 0, 0, count - most), value=torch.nan)


def text_relevance(p: Pass, states: Tensor, position: Tensor) -> Tensor:
    """``[I, N]``: mean cosine of the states at ``position [I, N]`` with those of their prompt's text rows."""
    text = text_rows(p)
    words = unit(gather_rows(states, text.inside))
    mean = (words if text.valid is None else words.masked_fill(~text.valid[..., None], 0)).sum(dim=1)
    mean = mean / torch.tensor(p.layout.text_count, device=states.device)[:, None].clamp(min=1)
    features = unit(gather_rows(states[p.layout.prompt], position))
    return (features @ mean[p.layout.prompt][..., None])[..., 0].masked_fill(~p.alive.valid, 0.0)


def joined_heads(x: Tensor, heads: int) -> Tensor:
    """``[T, 1, n, heads * d]``: the heads of ``x [T, H, n, d]`` side by side as one, shared ones repeated."""
    return x.repeat_interleave(heads // x.shape[1], dim=1).transpose(1, 2).flatten(2)[:, None]


def last_row(p: Pass, cut: Rows | None) -> Tensor:
    """``[B]``: where each prompt's last real row stands among the rows of ``cut`` (None: all); the answer that a
    training gives with it is no part of the prompt."""
    device = p.layout.row.device
    last = torch.full((p.batch,), p.length - 1)
    if p.padding is not None:
        last = torch.where(p.padding, torch.arange(p.length), -1).amax(dim=1).clamp(min=0)
    if p.answers is not None:
        first = p.answers.int().argmax(dim=1)
        last = torch.where(first > 0, first - 1, last)
    last = last.to(device)
    return last if cut is None else torch.searchsorted(cut.rows, last[:, None])[:, 0]


def _references(output: Any) -> tuple[Any, Any]:
    """Weak references to features and to their first tensor: to know them again without keeping them."""
    pooled = getattr(output, "pooler_output", output)
    first = pooled if isinstance(pooled, Tensor) else pooled[0]
    return (lambda: None) if isinstance(output, (tuple, list)) else weakref.ref(output), weakref.ref(first)


def _same(ours: tuple[Any, Any] | None, theirs: Any) -> bool:
    """Whether ``theirs`` are the features we saw (beam search extends the object in place, hooks may rebuild it)."""
    if ours is None:
        return False
    pooled = getattr(theirs, "pooler_output", theirs)
    first = pooled if isinstance(pooled, Tensor) else pooled[0]
    return ours[0]() is theirs or ours[1]() is first
