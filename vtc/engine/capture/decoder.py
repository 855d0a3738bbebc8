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
from vtc.engine.kv_cache import cache_given, snapshot, without_cache
from vtc.engine.rows import Columns, gather_positions
from vtc.engine.state import Prefill, Rows
from vtc.errors import UnsupportedModel
from vtc.models.base import Family
from vtc.signals.base import DecoderCall, Signal


@dataclass
class Ahead:
    """A layer that runs up to its attention for one signal: the forward it is run for, the mask and keys it will have,
    and what the signal kept. Not noted in the forward: the layer may still lose rows before it runs."""

    signal: Signal
    prefill: Prefill
    mask: LazyMask
    past: Tensor | None
    kept: Tensor | None = None


class DecoderCapture:
    """Keeps what signals capture of each forward, in ``Prefill.captured``."""

    def __init__(self, family: Family):
        self.family = family
        self._ahead: Ahead | None = None

    def capture(
        self, p: Prefill | None, layer: int, signals: tuple[Signal, ...], q: Tensor, k: Tensor, mask: Mask, scale: float
    ) -> None:
        """An attention call of a hooked decoder layer."""
        if (ahead := self._ahead) is not None:
            k = k if ahead.past is None else torch.cat([ahead.past, k], dim=2)
            call = call_of(ahead.prefill, ahead.signal, q, k, ahead.mask, scale, ahead.prefill.last_cut)
            ahead.kept = ahead.signal.capture(call)
            raise EndOfLayer
        if p is None or not p.over:
            return
        for signal in signals:
            if (layer, signal) not in p.captured:  # a replay for a gradient finds it there
                plan = p.plans[layer]
                with p.clock:
                    call = call_of(p, signal, q, k, mask, scale, plan.runs or plan.rows)
                    p.captured[layer, signal] = signal.capture(call)

    def run_ahead(
        self, p: Prefill, index: int, states: Tensor, forward: Callable, kwargs: dict[str, Any], signal: Signal
    ) -> Tensor:
        """What ``signal`` captures of layer ``index``, run up to its q and k over these and the cached keys. No MLP;
        nothing is written to the cache."""
        before = p.last_cut
        rows = torch.arange(p.length, device=states.device).expand(p.batch, -1) if before is None else before.rows
        quiet = {**without_cache(kwargs), "attention_mask": None, "position_ids": None}
        quiet["position_embeddings"] = gather_positions(kwargs.get("position_embeddings"), rows, p.length)
        quiet.pop("hidden_states", None)
        held = snapshot(cache_given(kwargs), index)
        past = 0 if held is None else held.logical
        new = Columns(rows + past, before.valid if before else None, before.log_size if before else None)
        columns = new if held is None else held.columns(new, p.batch, rows.device)
        given = kwargs.get("attention_mask")
        mask = LazyMask(given, rows, columns, p.length, past + p.length, states.dtype, backend="sdpa")
        ahead = self._ahead = Ahead(signal, p, mask, None if held is None else held.keys)
        layer = self.family.layers[index]
        training = [module for module in layer.modules() if module.training]
        try:
            for module in training:  # no dropout in a ranking, and no random numbers that a replay would not draw
                module.training = False
            forward(states, **quiet)
        except EndOfLayer:
            return ahead.kept  # type: ignore[return-value]
        finally:
            self._ahead = None
            for module in training:
                module.training = True
        raise UnsupportedModel(
            f"decoder layer {index} does not run transformers' attention interface, so its tokens cannot be ranked; "
            "use a method at the decoder's input, such as divprune"
        )


def call_of(
    p: Prefill, signal: Signal, q: Tensor, k: Tensor, mask: Mask, scale: float, there: Rows | None
) -> DecoderCall:
    """The attention call as ``signal`` is shown it; there: the rows of the prompts that run (None: all)."""
    n, keys = q.shape[2], k.shape[2]
    rows = torch.arange(n, device=q.device).expand(len(q), -1) if there is None else there.rows.to(q.device)
    last, bias = p.last_row(there).to(q.device), partial(row_bias, mask, rows=n, keys=keys)
    return DecoderCall(q, k, scale, rows, last, p.length, bias, p.at_input.get(signal, q.new_empty(0)))
