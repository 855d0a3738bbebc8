"""Attention that each token receives inside the vision tower."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtc.kernels.received_attention import received_attention
from vtc.signals import register
from vtc.signals.base import Signal, TowerCall, TowerHook, View


@register("tower_attention")
@dataclass(frozen=True)
class TowerAttention(Signal):
    """``[I, N]``: attention each token receives from the CLS row of the tower's layer ``layer``, summed over heads.

    Where the tower has no CLS token: the mean over all rows of the attention received. A token made of several patches
    gets their mean. ``rows="all"``: that mean in every tower. ``joined``: q and k of all heads joined into those of
    one (PruMerge), which is the attention of no head.
    """

    received: ClassVar[bool] = True

    layer: int | float = -2
    rows: Literal["cls", "all"] = "cls"
    joined: bool = False

    def __post_init__(self) -> None:
        TowerHook(self.layer)  # checks the layer

    def words(self) -> str:
        return f"tower attention ({depth_in_words(self.layer)})"

    def hook(self, stage: int) -> TowerHook:
        return TowerHook(self.layer)

    def capture(self, call: TowerCall) -> Tensor:
        q, k, scale = call.q, call.k, call.scale
        if self.joined:
            q, k = joined_heads(q, q.shape[1]), joined_heads(k, q.shape[1])
            scale = q.shape[3] ** -0.5  # of the one wide head
        return received_in_tower(q, k, call.mask, call.cls if self.rows == "cls" else 0, scale)

    def read(self, view: View) -> Tensor:
        return view.tower(self)


def depth_in_words(layer: int | float) -> str:
    return f"{layer}" if isinstance(layer, int) else f"{100 * layer:.3g} %"


def joined_heads(x: Tensor, heads: int) -> Tensor:
    """``[T, 1, n, heads * d]``: the heads of ``x [T, H, n, d]`` side by side as one, shared ones repeated."""
    return x.repeat_interleave(heads // x.shape[1], dim=1).transpose(1, 2).flatten(2)[:, None]


def received_in_tower(q: Tensor, k: Tensor, mask: Tensor | None, cls: int, scale: float) -> Tensor:
    """``[T, n]``: attention each tower token receives from the CLS row (``cls > 0``), summed over heads; without a CLS
    token the mean over the rows that see it of what it receives, summed over heads alike. ``mask`` (``[T, 1, n, n]``,
    bool or additive) parts pictures that one call packs side by side."""
    if cls:
        return received_attention(q[:, :, :1], k, scale=scale).sum(dim=1)
    if mask is None or mask.dim() != 4:
        return received_attention(q, k, scale=scale).sum(dim=1) / q.shape[2]
    rows = []
    for t, one in enumerate(mask.expand(q.shape[0], -1, -1, -1)):
        spans = [(q[t : t + 1, :, w], k[t : t + 1, :, w]) for w in windows(one)]
        rows.append(torch.cat([received_attention(a, b, scale=scale).sum(dim=1)[0] / a.shape[2] for a, b in spans]))
    return torch.stack(rows)


def windows(mask: Tensor) -> list[slice]:
    """The runs of tokens that see each other in ``mask [1, n, n]``: cut where a token does not see the one before."""
    seen = mask[0] if mask.dtype == torch.bool else mask[0] > torch.finfo(mask.dtype).min / 2
    edges = [0, *((~seen.diagonal(-1)).nonzero()[:, 0] + 1).tolist(), seen.shape[0]]
    return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]
