"""Double compression: int8 weights made so that an entropy coder makes them small (arXiv 2502.15443)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.errors import WeightsError
from vtc.weights.fitting.masks import all_but_lowest
from vtc.weights.passes import register
from vtc.weights.passes._matrix import as_ints
from vtc.weights.passes.base import Candidate, Pass

LEAST_INPUT = 1e-5  # of the largest


@register("double")
@dataclass(frozen=True)
class Double(Pass):
    """int8 codes that crowd around 0. Column j is multiplied by ``s_j = max|x_j|^alpha``, so weights of small inputs
    get few codes; a row's codes reach to ``levels`` (127: all of int8); the ``sparsity`` of a row whose ``|w| max|x|``
    is least become 0.

    In memory it is a byte a weight. ``vtc.weights.rate`` measures what an archive makes of it. Fewer levels gain more
    than pruning there, so ``sparsity`` is 0 unless asked for.
    Departs from the paper: ``s`` stays with the layer, the coder is zstd's, and a layer is coded whole or not at all.
    """

    levels: int = 31
    alpha: float = 0.5
    sparsity: float = 0.0
    name = "double"

    def __post_init__(self) -> None:
        for name, low, high in (("levels", 1, 127), ("alpha", 0, 1), ("sparsity", 0, 0.99)):
            value = getattr(self, name)
            kinds = int if name == "levels" else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
                raise WeightsError(f"{name} must be a number from {low} to {high}, not {value!r}")

    def fit(self, layer: Candidate) -> Candidate:
        weight, largest = layer.for_matrix, layer.gram.largest
        stays = all_but_lowest(weight.abs() * largest, int(weight.shape[1] * self.sparsity))
        columns = inverse_scales(largest, self.alpha).to(layer.dtype).float()
        work = weight * stays / columns
        scale = (work.abs().amax(1, keepdim=True) / self.levels).to(layer.dtype).float()
        codes = (work / torch.where(scale == 0, torch.ones_like(scale), scale)).round().clamp(-128, 127)
        return as_ints(layer, codes + 128, scale, None, 8, 0, columns=columns)


def inverse_scales(largest: Tensor, alpha: float) -> Tensor:
    """``[D]``: 1/s of inputs that reach ``largest [D]``, with a geometric middle of 1."""
    top = largest.max()
    if not top:
        return torch.ones_like(largest)
    scales = largest.clamp_min(LEAST_INPUT * top).pow(alpha)
    return (scales.max() * scales.min()).sqrt() / scales
