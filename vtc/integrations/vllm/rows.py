"""Pictures in, rows of the decoder out; each row carries, in channels behind its features, what it stands for and where
it stood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vtc.engine.stages import slot_values
from vtc.methods._share import share
from vtc.methods.base import Method
from vtc.signals.base import Signal
from vtc.tokens import VisionTokens

SIDE = 4  # numbers of a row: its size, and where it stood: t, y, x behind its picture's first position
DIGIT = 256  # bfloat16 holds whole numbers up to here: a number below its square takes two channels


@torch.no_grad()
def reduced(
    pictures: Sequence[Tensor],
    places: Sequence[Tensor],
    grids: Sequence[Tensor],
    method: Method,
    keep: Sequence[int],
    signals: Mapping[Signal, Tensor],
) -> list[Tensor]:
    """``[K_i, D + 2 * SIDE]`` for each picture ``[N_i, D]``.

    places ``[N_i, 3]``: positions of its tokens behind its first; grids ``[N_i, 3]``: (t, y, x) of them; keep: rows of
    each; signals: of all of them, padded to the longest.
    """
    counts = [len(picture) for picture in pictures]
    features, place, grid = (pad_sequence(list(x), batch_first=True) for x in (pictures, places, grids))
    place, grid = place.to(features.device), grid.to(features.device)
    index = torch.arange(features.shape[1], device=features.device).expand(len(counts), -1)
    valid = index < torch.tensor(counts, device=features.device)[:, None]
    tokens = VisionTokens(
        features=features,
        valid=valid,
        size=torch.ones(valid.shape, device=features.device),
        grid=grid,
        row=index,
        prompt=index[:, 0],
        count=counts,
    )
    reduction = method.reduce(0, tokens, dict(signals), list(keep))
    if method.share:
        reduction = share(tokens, reduction)
    values, anchor = slot_values(reduction, features, tokens), reduction.anchor.clamp(min=0)
    if reduction.refine is not None:
        values = reduction.refine(features, values)
    sizes = reduction.sizes(tokens).long() if method.share else torch.ones_like(anchor)
    where = place.gather(1, anchor[..., None].expand(-1, -1, 3))
    side = packed(torch.cat([sizes[..., None], where], dim=-1), values.dtype)
    return [torch.cat([v[:k], s[:k]], dim=-1) for v, s, k in zip(values, side, keep, strict=True)]


def packed(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """``[..., 2 n]`` for whole numbers ``[..., n]`` below 65,536."""
    return torch.cat([numbers // DIGIT, numbers % DIGIT], dim=-1).to(dtype)


def unpacked(channels: Tensor) -> Tensor:
    """The numbers again."""
    high, low = channels.long().chunk(2, dim=-1)
    return high * DIGIT + low
