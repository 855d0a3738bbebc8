"""Bolaco: a low rank from the principal components of a layer's outputs (Ji et al., Findings of EMNLP 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.weights.fitting.lowrank import whitened
from vtc.weights.passes import register
from vtc.weights.passes._lowrank import LowRankPass
from vtc.weights.passes.base import Candidate


@register("bolaco")
@dataclass(frozen=True)
class Bolaco(LowRankPass):
    """``P PT W``, with P the first eigenvectors of ``W cov(x) WT``, the outputs' covariance over all calibration.

    It keeps what varies; ``svdllm`` also counts the mean output, and so has less error.

    Departs from the paper: ranks come from outside, no Bayesian search over groups of layers.
    """

    name = "bolaco"

    def factors(self, rest: Tensor, layer: Candidate, rank: int) -> tuple[Tensor, Tensor]:
        gram = layer.gram
        mean = gram.mean.double()
        return whitened(rest, gram.moment.double() - gram.count * torch.outer(mean, mean), rank)
