"""Each tile of a picture reduced by itself, as if it were a picture: what lets HiRED's quota go to any selector."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vtc.methods.base import Method
from vtc.signals.base import Signal
from vtc.tokens import Reduction, VisionTokens, scatter_valid


def reduce_tiles(
    method: Method, tile: Tensor, quota: Tensor, tokens: VisionTokens, signals: dict[Signal, Tensor]
) -> Reduction:
    """``method`` on the tokens of each tile: of ``tile [I, N]`` p it keeps ``quota [I, P]`` p. A tile without a quota
    is dropped. Everything the method sees of another tile is that it is another picture of the batch."""
    member, count = members(tile.where(tokens.valid & (quota.gather(1, tile) > 0), -1), quota.shape[1])
    r = method.reduce(0, pictures(member, count, tokens), spread(member, method, signals), quota.flatten().tolist())
    if r.refine is not None:
        raise ValueError(f"hired: {method.name} makes the values of its slots itself, which cannot be put together")
    owner = member.flatten(1)  # the token at each place of a picture's tiles
    leader = scatter_valid(torch.full_like(tokens.row, -1), owner, leaders(member, r.anchor, r.slot))
    weight = None
    if r.weight is not None:
        own = r.weight.unflatten(0, quota.shape).flatten(1)
        weight = scatter_valid(own.new_zeros(tokens.row.shape), owner, own)
    whole = Reduction.join(leader, max(quota.sum(dim=1).tolist()), weight)
    also = tuple(
        (
            of_picture(member, source).clamp(min=0),
            slots(whole, leaders(member, r.anchor, slot)),
            share.unflatten(0, quota.shape).flatten(1),
        )
        for source, slot, share in r.also
    )
    return replace(whole, merges=r.merges, also=also)


def members(tile: Tensor, many: int) -> tuple[Tensor, list[int]]:
    """``[I, P, n]``: the tokens of each of ``many`` tiles in order, -1 padded, and how many these are (I * P of them).
    ``tile [I, N]``, -1 = none."""
    ordered, order = tile.where(tile >= 0, many).sort(dim=1, stable=True)
    number = torch.arange(many, device=tile.device).expand(len(tile), -1).contiguous()
    start = torch.searchsorted(ordered, number)
    size = torch.searchsorted(ordered, number, right=True) - start
    count = size.flatten().tolist()
    place = torch.arange(max(count, default=0), device=tile.device)
    index = (start[..., None] + place).clamp(max=max(0, tile.shape[1] - 1))
    found = order.gather(1, index.flatten(1)).unflatten(1, index.shape[1:])
    return found.where(place < size[..., None], -1), count


def pictures(member: Tensor, count: list[int], tokens: VisionTokens) -> VisionTokens:
    """The tiles ``member [I, P, n]`` as pictures of their own."""
    valid = (member >= 0).flatten(0, 1)
    return VisionTokens(
        features=_take(tokens.features, member),
        valid=valid,
        size=_take(tokens.size, member).masked_fill(~valid, 0),
        grid=_take(tokens.grid, member).masked_fill(~valid[..., None], -1),
        row=_take(tokens.row, member).masked_fill(~valid, -1),
        prompt=tokens.prompt.repeat_interleave(member.shape[1]),
        count=count,
    )


def spread(member: Tensor, method: Method, signals: dict[Signal, Tensor]) -> dict[Signal, Tensor]:
    """The method's signals by tile; what is a picture's and not its tokens' goes to each of its tiles."""
    tiles = member.shape[1]
    return {
        s: signals[s].repeat_interleave(tiles, dim=0) if s.per_picture else _take(signals[s], member)
        for s in method.signals(0)
    }


def of_picture(member: Tensor, place: Tensor) -> Tensor:
    """``[I, P * m]``: the picture's token at each ``place [I * P, m]`` of a tile of ``member [I, P, n]``, -1 = none."""
    found = member.flatten(0, 1).gather(1, place.clamp(min=0)).where(place >= 0, -1)
    return found.unflatten(0, member.shape[:2]).flatten(1)


def leaders(member: Tensor, anchor: Tensor, slot: Tensor) -> Tensor:
    """``[I, P * m]``: the picture's token that is the anchor of each ``slot [I * P, m]`` of a tile, -1 = none."""
    return of_picture(member, anchor.gather(1, slot.clamp(min=0)).where(slot >= 0, -1))


def slots(whole: Reduction, leader: Tensor) -> Tensor:
    """``[I, m]``: the slot of each anchor ``leader [I, m]``, -1 = none."""
    return whole.slot.gather(1, leader.clamp(min=0)).where(leader >= 0, -1)


def _take(values: Tensor, member: Tensor) -> Tensor:
    """``[I * P, n, ...]``: ``values [I, N, ...]`` of the tokens ``member [I, P, n]`` (of token 0 for -1)."""
    picture = torch.arange(len(values), device=values.device)[:, None, None]
    return values[picture, member.clamp(min=0)].flatten(0, 1)
