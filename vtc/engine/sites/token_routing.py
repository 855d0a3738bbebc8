"""Rows that skip a layer: each decoder layer runs on rows of its own, the others leave it as they came."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.budget.layer_budget import LayerBudget
from vtc.engine.attention.gates import Gates
from vtc.engine.attention.masks import ReducingMask
from vtc.engine.kv_cache import RowCacheLayer
from vtc.engine.rows import Columns
from vtc.engine.stages import listed, make_cut
from vtc.engine.state import Cut, Prefill
from vtc.methods.base import Method
from vtc.signals.base import Signal
from vtc.tokens import Budget, VisionTokens


class Router:
    """Chooses the rows of decoder layers ``first`` to ``depth - 1``, one forward at a time."""

    def __init__(self, method: Method, budget: Budget, first: int, depth: int):
        self.method, self.budget = method, budget
        self.first, self.depth = first, depth

    def cut(self, p: Prefill, index: int, tokens: VisionTokens, position: Tensor, signals: dict[Signal, Tensor]) -> Cut:
        """The rows that run in layer ``index``, of all: the vision tokens at ``position [I, N]`` and the text."""
        p.signals[index] = signals
        method = self.method.in_layer(index - self.first)
        return make_cut(p, method, 0, self._spend(p, index), tokens, position, signals)[0]

    def _spend(self, p: Prefill, index: int) -> list[int]:
        """Tokens of each picture that run in layer ``index``."""
        if index == self.first:
            p.layer_budget = LayerBudget.of(p.full, self.budget, index, self.method.weights(self.depth - index))
        return p.layer_budget.spend(index)

    def gate(self, p: Prefill, cut: Cut, index: int) -> Tensor:
        """``[B, K]``, differentiable: how much the rows of ``cut`` are meant to run in layer ``index``, 0 for text."""
        soft = self.method.in_layer(index - self.first).gates(cut.tokens, p.signals[index], cut.keep)
        picture, n = listed(cut.tokens.count, soft.device)
        gate = torch.zeros(p.batch, p.length, dtype=soft.dtype, device=soft.device)
        gate = gate.index_put((cut.tokens.prompt[picture], cut.tokens.row[picture, n]), soft[picture, n])
        return gate.gather(1, cut.rows)

    def mask(
        self,
        p: Prefill,
        cut: Cut,
        index: int,
        layer: RowCacheLayer | None,
        given: Any,
        mask: Any,
        states: Tensor,
        attn: str,
    ) -> ReducingMask:
        """``mask``, the attention mask of the rows of ``cut``, with gates that learn what each of their keys is worth.
        ``given``: the model's own mask; ``attn``: its attention function."""
        past = 0 if layer is None else layer.logical
        columns = Columns(cut.rows + past, cut.valid)
        columns = columns if layer is None else layer.columns(columns, p.batch, states.device)
        there = torch.ones_like(columns.index, dtype=torch.bool) if columns.valid is None else columns.valid
        whole = partial(ReducingMask, given, cut.rows, columns, p.length, past + p.length, states.dtype, attn)

        def same(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Any, Gates]:
            gate = self.gate(p, cut, index)  # here, so that attention that is replayed alone has a graph of its own
            bias = whole(reduce=same).additive
            return k, v, mask, Gates(pad(gate, (k.shape[2] - gate.shape[1], 0)), k, v, bias, there)

        return whole(reduce=same)
