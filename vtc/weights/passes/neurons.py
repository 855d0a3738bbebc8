"""MLP neurons: rows of gate_proj and up_proj, columns of down_proj."""

from __future__ import annotations

from dataclasses import dataclass

from vtc.weights.passes import register
from vtc.weights.passes._structure import ChannelPass


@register("neurons")
@dataclass(frozen=True)
class Neurons(ChannelPass):
    """Remove the neurons that matter least, the same number from every layer."""

    name = "neurons"
    kinds = ("neurons",)
