"""Near-equal rectangular cells of a picture's grid, as many as asked for: what ``grid`` and ``pool`` share."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from vtc.errors import UnsupportedModel
from vtc.kernels.float64 import in_float64
from vtc.tokens import VisionTokens


def leaders(name: str, tokens: VisionTokens, keep: list[int]) -> Tensor:
    """``[I, N]``: the token nearest the centre of each token's cell (-1 in padding); ``keep[i]`` cells a picture.

    Ties go to the lower index. Raises ``UnsupportedModel`` where the tokens have no grid.
    """
    need_grid(name, tokens)
    cell, spare = cells(tokens, keep), max(keep)
    owner = cell.where(tokens.valid, spare)
    order = in_float64(partial(from_centre, cells=spare + 1), tokens.grid, owner)
    order = order.gather(1, owner.gather(1, order).argsort(dim=1, stable=True))  # by cell, then by distance
    first = torch.searchsorted(owner.gather(1, order), owner)  # where the token's cell begins in that order
    return order.gather(1, first).where(tokens.valid, -1)


def from_centre(grid: Tensor, owner: Tensor, cells: int) -> Tensor:
    """``[I, N]``: the tokens by their distance from the mean place of those with the same ``owner [I, N]``."""
    place = torch.cat([grid, torch.ones_like(grid[..., :1])], dim=2).double()
    owners = owner[..., None].expand(-1, -1, 4)
    total = place.new_zeros(len(owner), cells, 4).scatter_add_(1, owners, place).gather(1, owners)
    return (place - total / total[..., 3:]).square().sum(2).argsort(dim=1, stable=True)


def need_grid(name: str, tokens: VisionTokens) -> None:
    """Raises ``UnsupportedModel`` where some token has no place in its picture."""
    if not tokens.has_grid:
        raise UnsupportedModel(
            f"{name} needs every vision token's place in its picture, and this model's tokens have none "
            "(learned queries); use a method that needs no grid, such as 'random', 'divprune' or 'bipartite'"
        )


def cells(tokens: VisionTokens, keep: list[int]) -> Tensor:
    """``[I, N]``: the cell of each token, 0 .. keep[i] - 1, none empty (any value in padding).

    Frames (or tiles) get cells in proportion to their tokens, those too small for one join the next. A frame of H x W
    tokens with k cells is cut into R bands of near-equal height, as many as make its cells nearly square, and band r
    into ``(r + 1) k // R - r k // R`` cells of near-equal width. A frame of n tokens that are no multiple of its first
    row counts as n x 1.
    """
    cells = torch.tensor(keep, device=tokens.row.device)[:, None]
    count = torch.tensor(tokens.count, device=tokens.row.device)[:, None].clamp(min=1)
    t, y, x = tokens.grid.where(tokens.valid[..., None], 0).unbind(2)
    wide, high = x.max() + 1, y.max() + 1
    order = ((t * high + y) * wide + x).where(tokens.valid, torch.iinfo(torch.int64).max).argsort(dim=1, stable=True)
    t, y = t.gather(1, order), y.gather(1, order)  # from here on tokens stand in raster order
    rank = torch.arange(t.shape[1], device=t.device).expand_as(t)
    real = rank < count

    frame = t.where(real, torch.iinfo(t.dtype).max)
    low = (torch.searchsorted(frame, frame) * cells // count).where(real, cells)  # the first cell of its frame
    start, end = torch.searchsorted(low, low), torch.searchsorted(low, low, right=True)
    k = torch.cat([low, cells], dim=1).gather(1, end) - low
    n, rank = end - start, rank - start

    row = t * high + y  # height and width of each frame, from the length of its first row
    line = torch.searchsorted(row.where(real, torch.iinfo(t.dtype).max), row, right=True)
    width = (line - start).gather(1, start).clamp(min=1)
    width = width.masked_fill(n % width > 0, 1)
    height = n // width

    bands = (k * height / width).sqrt().round().long()
    bands = bands.clamp(min=1).maximum((k + width - 1) // width).minimum(torch.minimum(height, k.clamp(min=1)))
    band = rank // width * bands // height
    first, after = band * k // bands, (band + 1) * k // bands
    return torch.empty_like(low).scatter_(1, order, low + first + rank % width * (after - first) // width)
