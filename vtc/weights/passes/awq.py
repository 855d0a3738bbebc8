"""AWQ: inputs that are large get finer steps (arXiv 2306.00978)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.weights.codec import grids
from vtc.weights.fitting.gram import Gram
from vtc.weights.passes import register
from vtc.weights.passes._matrix import as_ints
from vtc.weights.passes.base import Candidate, Pass, check_bits, check_flag, check_group

STEPS = 20  # of the search over exponents, and of the one over clipping limits, which ends half way


@register("awq")
@dataclass(frozen=True)
class AWQ(Pass):
    """Integers of ``bits`` bits with a scale and a zero point for every ``group`` inputs (0: whole rows), of weights
    whose column j was multiplied by ``s_j = mean|x_j|^a``; a, then (``clip``) how far each group is clipped, are those
    of least output error.

    Departs from the paper: 1/s stays with the layer instead of going into the layer before; 0 is always a code; the
    clipping search sees every calibration token instead of a sample.
    """

    bits: int = 4
    group: int = 128
    clip: bool = True
    name = "awq"

    def __post_init__(self) -> None:
        check_bits(self.bits)
        check_group(self.group)
        check_flag("clip", self.clip)

    def fit(self, layer: Candidate) -> Candidate:
        weight = layer.for_matrix
        group = 0 if self.group >= layer.gram.width else self.group
        columns = inverse_scales(weight, layer.gram, self.bits, group, layer.dtype)
        work = weight / columns
        if self.clip:
            work = clipped(work, layer.gram.moment * columns * columns[:, None], self.bits, group, layer.dtype)
        codes, scale, zero = grids.round_to_nearest(work, self.bits, group, False, layer.dtype)
        return as_ints(layer, codes, scale, zero, self.bits, group, columns=columns)


def inverse_scales(weight: Tensor, gram: Gram, bits: int, group: int, dtype: torch.dtype) -> Tensor:
    """``[D]``: 1/s of the exponent whose rounded weights ``[O, D]`` err least, as ``dtype`` stores it; the first of
    equals."""
    best, least = torch.ones_like(gram.total), float("inf")
    for step in range(STEPS):
        scales = gram.mean_absolute.pow(step / STEPS).clamp_min(1e-4)
        columns = ((scales.max() * scales.min()).sqrt() / scales).to(dtype).float()
        rounded = grids.round_to_nearest(weight / columns, bits, group, False, dtype)
        left = weight - grids.dequantized(*rounded, group) * columns
        loss = float(((left @ gram.moment) * left).sum())
        if loss < least:
            best, least = columns, loss
    return best


def clipped(weight: Tensor, moment: Tensor, bits: int, group: int, dtype: torch.dtype) -> Tensor:
    """``weight [O, D]``, each group clipped to the limit, between half and all of its largest, at which it errs least
    under the inputs' ``moment [D, D]``; the widest of equals."""
    groups = grids.grouped(weight, group)
    _, count, size = groups.shape
    fill = count * size - weight.shape[1]
    blocks = pad(moment, (0, fill, 0, fill)).view(count, size, count, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    widest = groups.abs().amax(-1, keepdim=True)
    best, least = widest, torch.full_like(widest, torch.inf)
    for step in range(STEPS // 2):
        limit = widest * (1 - step / STEPS)
        cut = groups.clamp(-limit, limit)
        scale, zero = (t[..., None] for t in grids.grid(cut, bits, False, dtype))
        left = groups - grids.from_codes(grids.to_codes(cut, scale, zero, bits), scale, zero)
        loss = (torch.einsum("ogi,gij->ogj", left, blocks) * left).sum(-1, keepdim=True)
        best, least = torch.where(loss < least, limit, best), torch.minimum(loss, least)
    return groups.clamp(-best, best).flatten(1)[:, : weight.shape[1]]
