"""Density peaks within groups of tokens (DPC-KNN), a block of distances at a time: what video methods cluster by.

    rho_n = exp(-mean squared distance to the k nearest, itself included)
    delta_n = distance to the nearest denser token, or to the farthest of all where none is denser

Distances are Euclidean over sqrt(D). Only tokens of the same group meet; group -1 = none. Of equally dense tokens the
lower index counts as the denser. Study on density peaks clustering based on k-nearest neighbors, Du, Ding, Jia, 2016.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vtc.kernels.float64 import in_float64

BLOCK = 1 << 20  # distances held at a time (8 MiB while they are float64); more where groups are ragged
EQUAL = 1e-12  # of two squared lengths: a squared distance below is rounding
NEAREST = 8  # the most neighbours a density has, if no more are asked for


@torch.no_grad()
def peaks(x: Tensor, group: Tensor, nearest: Tensor | int, most: int = NEAREST) -> Tensor:
    """``[I, N]``: ``rho * delta`` of the tokens ``x [I, N, D]`` in their groups ``[I, N]``, 0 outside of groups; k is
    ``nearest``, a number or ``[I, N]``, no more than ``most``."""
    k = torch.as_tensor(nearest, device=x.device).expand_as(group)
    spread = torch.zeros_like(x[..., 0], dtype=torch.float32)
    for rows, _, distance in pairs(x, group, group):
        near = distance.topk(min(most, distance.shape[2]), largest=False).values
        near = torch.nn.functional.pad(near, (0, most - near.shape[2]), value=torch.inf)
        used = (torch.arange(most, device=x.device) < k.gather(1, rows)[..., None]) & (near < torch.inf)
        spread.scatter_(1, rows, near.square().where(used, 0).sum(dim=2) / used.sum(dim=2))
    place = spread.argsort(dim=1, stable=True).argsort(dim=1)  # 0 = the densest
    delta = torch.zeros_like(spread)
    for rows, columns, distance in pairs(x, group, group):
        denser = place.gather(1, columns)[:, None] < place.gather(1, rows)[..., None]
        delta.scatter_(1, rows, distance.masked_fill_(~denser, torch.inf).amin(dim=2))
    for rows, _, distance in pairs(x, group.where(delta == torch.inf, -1), group):  # the densest of each group
        farthest = distance.masked_fill_(distance == torch.inf, 0).amax(dim=2)
        above = delta.gather(1, rows)
        delta.scatter_(1, rows, above.where(above < torch.inf, farthest))
    return ((-spread).exp() * delta).masked_fill(group < 0, 0)


@torch.no_grad()
def closest(x: Tensor, group: Tensor, target: Tensor) -> Tensor:
    """``[I, N]``: for each token the nearest one whose ``target [I, N]`` is its ``group``; the lower index on ties, -1
    where there is none."""
    out = torch.full_like(group, -1)
    for rows, columns, distance in pairs(x, group, target):
        least = distance.min(dim=2)
        out.scatter_(1, rows, columns.gather(1, least.indices).masked_fill(least.values == torch.inf, -1))
    return out.where(group >= 0, -1)


def pairs(x: Tensor, group: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Blocks ``(rows [I, r], columns [I, c], distance [I, r, c])`` that cover all pairs n, m with ``group[n] ==
    target[m] >= 0``; the distance of pairs of two groups is inf. Columns of a group ascend."""
    row, column = group.argsort(dim=1, stable=True), target.argsort(dim=1, stable=True)
    own, theirs = group.gather(1, row), target.gather(1, column)
    first, after = (torch.searchsorted(theirs, own, right=right) for right in (False, True))
    first, after = first.where(own >= 0, x.shape[1]), after.where(own >= 0, 0)
    widest = max(1, int((after - first).max()))
    step = max(1, min(max(widest, 64), BLOCK // (widest * len(x))))
    low = torch.stack([part.min() for part in first.split(step, dim=1)]).tolist()
    high = torch.stack([part.max() for part in after.split(step, dim=1)]).tolist()
    for start, i, j in zip(range(0, x.shape[1], step), low, high, strict=True):
        if i < j:
            rows, columns = row[:, start : start + step], column[:, i:j]
            a, b = (x.gather(1, index[..., None].expand(-1, -1, x.shape[2])) for index in (rows, columns))
            strangers = own[:, start : start + step, None] != theirs[:, None, i:j]
            yield rows, columns, in_float64(distances, a, b).masked_fill_(strangers, torch.inf)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """``[I, r, c]`` in float32, over sqrt(D). Float64 inside: the last bits of a matrix product depend on its shape and
    on which of two tokens is the row, and neither may decide between equals."""
    a, b = (x.double() / x.shape[2] ** 0.5 for x in (a, b))
    lengths = a.square().sum(dim=2)[..., None] + b.square().sum(dim=2)[:, None]
    square = torch.baddbmm(lengths, a, b.mT, alpha=-2)
    return square.masked_fill_(square < lengths.mul_(EQUAL), 0).sqrt_().float()
