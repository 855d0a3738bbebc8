"""Attention heads: rows of q_proj, k_proj and v_proj, columns of o_proj; whole key-value groups."""

from __future__ import annotations

from dataclasses import dataclass

from vtc.weights.passes import register
from vtc.weights.passes._structure import ChannelPass


@register("heads")
@dataclass(frozen=True)
class Heads(ChannelPass):
    """Remove the heads that matter least, the same number from every layer; heads that share keys and values go
    together, so the cache shrinks, too."""

    name = "heads"
    kinds = ("heads",)
