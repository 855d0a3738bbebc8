"""Weight sharing: every weight is one of a few values, found by k-means (arXiv 1510.00149)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.weights.codec.packing import pack
from vtc.weights.codec.terms.codebook import Codebook
from vtc.weights.fitting.gram import Gram
from vtc.weights.passes import register
from vtc.weights.passes.base import Candidate, Pass, check_bits, check_flag

ROUNDS = 200  # 16 values are settled after about 100, 256 values after about 40


@register("kmeans")
@dataclass(frozen=True)
class KMeans(Pass):
    """A table of ``2^bits`` values for the matrix, or (``rows``) for each output row. A weight counts as much as its
    input is large (the diagonal of the moment). After pruning one value of the table is 0.

    Departs from the paper: weights count unequally, centroids start at quantiles, nothing is trained afterwards.
    """

    bits: int = 4
    rows: bool = False
    name = "kmeans"

    def __post_init__(self) -> None:
        check_bits(self.bits, tuple(range(1, 9)))
        check_flag("rows", self.rows)

    def fit(self, layer: Candidate) -> Candidate:
        weight, mask = layer.for_matrix, layer.mask
        counts = importance(layer.gram).expand_as(weight)
        counts = counts if mask is None else counts * mask
        shape = weight.shape if self.rows else (1, weight.numel())
        table = centroids(weight.reshape(shape), counts.reshape(shape), 2**self.bits - (mask is not None))
        table = table.to(layer.dtype).float()
        codes = nearest(weight.reshape(shape), table).view(weight.shape)
        if mask is not None:
            table = pad(table, (1, 0))
            codes = (codes + 1) * mask
        tensors = {"codes": pack(codes, self.bits), "table": table.to(layer.dtype)}
        return layer.with_matrix(Codebook(self.bits, self.rows), tensors)


def importance(gram: Gram) -> Tensor:
    """``[D]``, positive: the mean square of each input relative to their mean, and a little for inputs never seen."""
    square = gram.moment.diagonal()
    return square / square.mean().clamp_min(1e-30) + 1e-6


def centroids(values: Tensor, counts: Tensor, k: int) -> Tensor:
    """``[R, k]``, ascending: Lloyd's algorithm on each row of ``values [R, N]``, that count ``counts [R, N]`` times.
    In one dimension a cluster is a stretch of the sorted values, so a round is k differences of running sums."""
    ordered, order = values.sort(dim=1)
    counts = counts.gather(1, order).double()
    mass, moment = _running(counts), _running(counts * ordered)
    centres = _start(ordered, counts, k)
    for _ in range(ROUNDS):
        inner = torch.searchsorted(ordered, middles(centres))
        ends = pad(pad(inner, (1, 0)), (0, 1), value=values.shape[1])
        weight, total = mass.gather(1, ends).diff(dim=1), moment.gather(1, ends).diff(dim=1)
        moved = torch.where(weight > 0, total / weight.clamp_min(1e-30), centres.double()).float()
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _start(ordered: Tensor, counts: Tensor, k: int) -> Tensor:
    """``[R, k]``: equal quantiles of the density to the power 1/3, which is how many centres spread best (Panter and
    Dite 1951); between two values the density is count over gap."""
    gaps = ordered.diff(dim=1).double()
    between = (counts[:, 1:] + counts[:, :-1]) / 2
    spread = _running(between ** (1 / 3) * gaps ** (2 / 3))
    share = (torch.arange(k, device=ordered.device) + 0.5) / k
    return ordered.gather(1, torch.searchsorted(spread, spread[:, -1:] * share).clamp_max(ordered.shape[1] - 1))


def nearest(values: Tensor, table: Tensor) -> Tensor:
    """``[R, N]``: where each of ``values [R, N]`` is nearest in its ascending row of ``table [R, k]``."""
    return torch.searchsorted(middles(table), values.contiguous())


def middles(table: Tensor) -> Tensor:
    """``[R, k - 1]``: where the nearest value of a row changes."""
    return ((table[:, 1:] + table[:, :-1]) / 2).contiguous()


def _running(values: Tensor) -> Tensor:
    """``[R, N + 1]``: sums of the first 0, 1, ..., N."""
    return pad(values.cumsum(1), (1, 0))
