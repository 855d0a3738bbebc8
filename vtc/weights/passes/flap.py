"""FLAP: heads and neurons whose inputs hardly fluctuate go, their mean stays in a bias (arXiv 2312.11983)."""

from __future__ import annotations

from dataclasses import dataclass

from vtc.weights.passes import register
from vtc.weights.passes._structure import ChannelPass


@register("flap")
@dataclass(frozen=True)
class FLAP(ChannelPass):
    """Heads and neurons together under one threshold over the whole decoder.

    Departs from the authors' code: heads that share keys are one unit, and a head weighs what its parameters weigh
    against a neuron's, not rounded down.
    """

    across: str = "model"
    name = "flap"
    kinds = ("heads", "neurons")
