"""How tower tokens become language-model tokens: small maps that families share. Values are ``[T, n, d]``."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor

from vtc.models.base import Place


def raster(frames: int, rows: int, columns: int) -> Tensor:
    """``[frames * rows * columns, 3]``: (t, y, x) in reading order."""
    return torch.cartesian_prod(torch.arange(frames), torch.arange(rows), torch.arange(columns)).view(-1, 3)


def raster_place(frames: int, rows: int, columns: int, specials: int = 0) -> Place:
    """A raster; every frame led by ``specials`` tokens that have no place."""
    grid = raster(frames, rows, columns).view(frames, -1, 3)
    grid = torch.cat([grid.new_full((frames, specials, 3), -1), grid], dim=1).flatten(0, 1)
    return Place(grid, torch.zeros(len(grid), dtype=torch.bool))


def square_tiles(count: int, tiles: int) -> Place:
    """``count`` tokens of so many square tiles."""
    side = isqrt(count // tiles)
    return raster_place(tiles, side, side)


def unknown_place(count: int) -> Place:
    """Tokens that stand nowhere in particular, such as a Q-former's queries."""
    return Place(torch.full((count, 3), -1), torch.zeros(count, dtype=torch.bool))


def block_mean(values: Tensor, rows: int, columns: int, side: int) -> Tensor:
    """``[T, rows * columns, d]`` in reading order: the mean of each block of ``side * side`` patches."""
    blocks = values.unflatten(1, (rows, side, columns, side))
    return blocks.mean(dim=(2, 4)).flatten(1, 2)


def join(captured: list[Tensor]) -> Tensor:
    """The raw tensors of a tower that sees whole tiles, ``[T, n]`` or ``[T, n, d]`` each, as one ``[T, n, d]``."""
    return torch.cat([with_width(raw, 2) for raw in captured])


def join_packed(captured: list[Tensor], lengths: list[int], received: bool) -> Tensor:
    """The raw tensors of a tower that packs pictures into one sequence, window by window, as ``[N, d]``.

    ``lengths``: the patches of each picture, in order. Mean received attention (``received``) is a mean over the rows
    of its window; it becomes the mean over all rows of the picture, so that windows of different size compare.
    """
    rows = torch.cat([(raw * raw.shape[1] if received else raw).flatten(0, 1) for raw in captured])
    rows = with_width(rows, 1)
    if not received:
        return rows
    share = [torch.full((length, 1), 1 / length) for length in lengths]
    return rows * torch.cat(share).to(rows)


def units_to_tokens(
    captured: list[Tensor], patches: list[int], unit: int, order: Tensor | None, received: bool
) -> list[Tensor]:
    """``[n, d]`` for each picture of so many ``patches``, ``unit`` of which in a row are a token: the raw tensors of a
    tower that packs pictures, as ``join_packed`` takes them. order ``[tokens]``: the token at each position of the
    tower's sequence; None: in order."""
    tokens = join_packed(captured, patches, received).unflatten(0, (-1, unit)).mean(dim=1)
    if order is not None:
        tokens = tokens[order.argsort().to(tokens.device)]
    return list(tokens.split([n // unit for n in patches]))


def patch_codes(shape: tuple[int, ...]) -> Tensor:
    """``[T, n]``: a number of its own for every patch, such that no mean of several is the number of another."""
    draw = torch.Generator().manual_seed(0)
    return torch.rand(shape, generator=draw, dtype=torch.float64) + 1


def patches_of(values: Tensor, codes: Tensor) -> Tensor:
    """``[m]``: the (flat) index of the patch whose code each of ``values [m, 1]`` is, -1 where it is none's."""
    known, order = codes.flatten().sort()
    place = torch.searchsorted(known, values[:, 0].contiguous()).clamp(max=len(known) - 1)
    return order[place].where(known[place] == values[:, 0], -1)


def with_width(values: Tensor, leading: int) -> Tensor:
    """``values`` with a last dimension of width 1 where they have only the ``leading`` ones."""
    return values.unsqueeze(-1) if values.dim() == leading else values
