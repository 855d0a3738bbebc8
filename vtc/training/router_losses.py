"""What guides a token router besides the model's own loss. Distillation is that of every other training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy

from vtc.engine.state import Cut
from vtc.errors import NotReduced, VTCError
from vtc.methods._soft_top_k import soft_top_k
from vtc.methods.router import Router
from vtc.patching.api import patch_of
from vtc.tokens import top


@dataclass(frozen=True)
class Routed:
    """What one decoder layer's router said in a forward: score ``[I, N]`` (a log, differentiable), attention ``[I, N]``
    that it saw, valid ``[I, N]`` bool, and how many tokens of each picture ran."""

    score: Tensor
    attention: Tensor
    valid: Tensor
    keep: list[int]


def routed(model: nn.Module) -> list[Routed]:
    """By layer, of the last forward with pictures. Raises ``VTCError`` for a model that routes nothing."""
    patch = patch_of(model)
    if patch is None or patch.engine.router is None:
        raise VTCError("this model routes no tokens; call vtc.patch(model, 'router', ...) first")
    p, first = patch.engine.current, patch.engine.router.first
    if p is None or not p.signals:
        raise NotReduced(
            "no token has skipped a layer in the last forward; run a prompt with a picture over the budget"
        )
    out = []
    for index, signals in sorted(p.signals.items()):
        cut, (attention,) = cast(Cut, p.plans[index].runs), signals.values()
        method = cast(Router, patch.method.in_layer(index - first))
        out.append(Routed(method.scores(cut.tokens, attention, cut.keep), attention, cut.tokens.valid, cut.keep))
    return out


def guide_loss(r: Routed) -> Tensor:
    """Cross-entropy in nats, the mean over tokens: the router's gates against the hard choice by attention alone."""
    keep = torch.tensor(r.keep, device=r.score.device).to(r.score.dtype)
    gate = soft_top_k(r.score, keep, r.valid)
    best = top(r.attention, r.keep, r.valid)
    chosen = torch.zeros(*gate.shape[:1], gate.shape[1] + 1, dtype=gate.dtype, device=gate.device)
    chosen = chosen.scatter(1, best.where(best >= 0, gate.shape[1]), 1.0)[:, :-1]
    return binary_cross_entropy(gate[r.valid], chosen[r.valid])


def sparsity_loss(r: Routed) -> Tensor:
    """Squared distance of the share of tokens that scores above 0 call for, softly, from the share that ran; the mean
    over pictures. The budget fixes how many run: this keeps the scores from drifting together, which no gate sees."""
    count = r.valid.sum(dim=1).clamp(min=1)
    wanted = r.score.sigmoid().masked_fill(~r.valid, 0.0).sum(dim=1) / count
    share = torch.tensor(r.keep, device=count.device) / count
    return (wanted - share.to(wanted.dtype)).square().mean()
