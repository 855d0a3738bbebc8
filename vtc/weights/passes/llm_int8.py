"""LLM.int8(): one byte a weight, but for the columns of inputs that are sometimes very large (arXiv 2208.07339)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.errors import WeightsError
from vtc.weights.codec.terms.columns import Columns
from vtc.weights.passes import register
from vtc.weights.passes._matrix import as_ints
from vtc.weights.passes.base import Candidate, Pass


@register("llm_int8")
@dataclass(frozen=True)
class LLMInt8(Pass):
    """Columns whose input reached ``threshold`` in calibration stay floats (0: none do); the rest is int8 with a scale
    for every output row.

    Departs from the paper: only weights are rounded, and the outlier columns are those of the calibration, not of each
    batch. bitsandbytes takes the outlier columns from the rounded weights; here they are the original ones, and do not
    widen the scales of the rest.
    """

    threshold: float = 6.0
    name = "llm_int8"

    def __post_init__(self) -> None:
        known = isinstance(self.threshold, (int, float)) and not isinstance(self.threshold, bool)
        if not known or not 0 <= self.threshold < float("inf"):
            raise WeightsError(
                f"threshold must be the size of an input, like 6.0, or 0 for none, not {self.threshold!r}"
            )

    def fit(self, layer: Candidate) -> Candidate:
        outliers = _columns(layer.gram.largest >= self.threshold if self.threshold else layer.gram.largest < 0)
        if len(outliers):
            values = layer.for_matrix[:, outliers].to(layer.dtype)
            layer = layer.with_part(Columns(len(outliers)), {"index": outliers.int(), "values": values})
        codes, scale, _ = vectorwise(layer.for_matrix, dtype=layer.dtype)
        return as_ints(layer, codes.short() + 128, scale[:, None], None, 8, 0)


def vectorwise(x: Tensor, threshold: float = 0.0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """``(codes [T, D] int8, scale [T], outliers [C])`` of ``x [T, D]``; x is about ``codes * scale``.

    outliers: the columns with an entry of at least ``threshold`` (0: none). Their codes are 0; what is below the
    threshold in them still counts for the scale of its row, as in bitsandbytes. scale: as ``dtype`` stores it.
    """
    large = x.abs() >= threshold if threshold else torch.zeros_like(x, dtype=torch.bool)
    outliers = _columns(large.any(0))
    rest = x.float().masked_fill(large, 0.0)
    scale = (rest.abs().amax(1) / 127).to(dtype).float()
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    codes = (rest / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
    codes[:, outliers] = 0
    return codes, scale, outliers


def _columns(which: Tensor) -> Tensor:
    """The indices at which ``which [D]`` is True."""
    return which.nonzero().flatten()
