"""What signals capture of the decoder's attention: while a layer runs, or by running it up to its attention alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vtc.engine.attention.masks import LazyMask, Mask, row_bias
from vtc.engine.capture.attention_hook import EndOfLayer
from vtc.engine.kv_cache import snapshot
from vtc.engine.rows import Columns, gather_positions
from vtc.engine.state import Prefill, Rows
from vtc.errors import UnsupportedModel
from vtc.models.base import Family
from vtc.signals.base import DecoderCall, Signal


@dataclass(frozen=True)
class Ahead:
    """A layer that runs up to its attention: the forward it is run for, and the mask and keys it will have."""

    prefill: Prefill
    mask: LazyMask
    past: Tensor | None


class DecoderCapture:
    """Keeps what signals capture of each forward, in ``Prefill.captured``."""

    def __init__(self, family: Family):
        self.family = family
        self._ahead: Ahead | None = None

    def capture(
        self, p: Prefill | None, layer: int, signals: tuple[Signal, ...], q: Tensor, k: Tensor, mask: Mask, scale: float
    ) -> None:
        """An attention call of a hooked decoder layer."""
        if self._ahead is not None:
            p, past = self._ahead.prefill, self._ahead.past
            k = k if past is None else torch.cat([past, k], dim=2)
            self._keep(p, layer, signals, q, k, self._ahead.mask, scale, p.last_cut)
            raise EndOfLayer
        if p is not None and p.over and any((layer, signal) not in p.captured for signal in signals):
            plan = p.plans[layer]
            with p.clock:
                self._keep(p, layer, signals, q, k, mask, scale, plan.runs or plan.rows)

    @staticmethod
    def _keep(
        p: Prefill,
        layer: int,
        signals: tuple[Signal, ...],
        q: Tensor,
        k: Tensor,
        mask: Mask,
        scale: float,
        there: Rows | None,
    ) -> None:
        n, keys = q.shape[2], k.shape[2]
        rows = torch.arange(n, device=q.device).expand(len(q), -1) if there is None else there.rows.to(q.device)
        bias = partial(row_bias, mask, rows=n, keys=keys)
        for signal in signals:
            at_input = p.at_input.get(signal, q.new_empty(0))
            call = DecoderCall(q, k, scale, rows, p.last_row(there).to(q.device), p.length, bias, at_input)
            p.captured.setdefault((layer, signal), signal.capture(call))

    def run_ahead(self, p: Prefill, index: int, states: Tensor, forward: Callable, kwargs: dict[str, Any]) -> None:
        """Run layer ``index`` up to its q and k, whose attention over these and the cached keys is captured. No MLP;
        nothing is written to the cache."""
        before = p.last_cut
        rows = torch.arange(p.length, device=states.device).expand(p.batch, -1) if before is None else before.rows
        quiet = {**kwargs, "attention_mask": None, "past_key_values": None, "position_ids": None}
        quiet["position_embeddings"] = gather_positions(kwargs.get("position_embeddings"), rows, p.length)
        quiet.pop("hidden_states", None)
        held = snapshot(kwargs.get("past_key_values"), index)
        past = 0 if held is None else held.logical
        new = Columns(rows + past, before.valid if before else None, before.log_size if before else None)
        columns = new if held is None else held.columns(new, p.batch, rows.device)
        given = kwargs.get("attention_mask")
        mask = LazyMask(given, rows, columns, p.length, past + p.length, states.dtype, backend="sdpa")
        self._ahead = Ahead(p, mask, None if held is None else held.keys)
        layer = self.family.layers[index]
        training = [module for module in layer.modules() if module.training]
        try:
            for module in training:  # no dropout in a ranking, and no random numbers that a replay would not draw
                module.training = False
            forward(states, **quiet)
        except EndOfLayer:
            return
        finally:
            self._ahead = None
            for module in training:
                module.training = True
        raise UnsupportedModel(
            f"decoder layer {index} does not run transformers' attention interface, so its tokens cannot be ranked; "
            "use a method at the decoder's input, such as divprune"
        )
