"""BitDelta: of a fine-tuning, the sign of every change and their mean size (arXiv 2402.10193)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vtc.weights.codec.packing import pack
from vtc.weights.codec.terms.signs import Signs
from vtc.weights.passes import register
from vtc.weights.passes._lowrank import check_layer
from vtc.weights.passes.base import Candidate, Pass


@register("bitdelta")
@dataclass(frozen=True)
class BitDelta(Pass):
    """One bit a weight and one scale a matrix, the mean |w|: nearest to the weights among all scales.

    Meant for ``vtc.weights.delta``, where the weight is a difference. Departs from the paper: its scales are then
    distilled for a few hundred steps; these are not.
    """

    name = "bitdelta"
    needs_gram = False

    def fit(self, layer: Candidate) -> Candidate:
        rest = layer.rest
        check_layer(rest, None)
        tensors = {
            "codes": pack((rest >= 0).to(torch.uint8), 1),
            "scale": rest.abs().mean().view(1, 1).to(layer.dtype),
        }
        return layer.with_part(Signs(), tensors)
