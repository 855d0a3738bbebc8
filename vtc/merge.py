"""The merge every reduction ends in: tokens of a slot become one."""

from __future__ import annotations

import torch
from torch import Tensor


def merge(features: Tensor, slot: Tensor, weight: Tensor | None, size: Tensor, slots: int) -> Tensor:
    """``[I, K, D]``: the value of each of the ``slots`` slots of each picture.

    features ``[I, N, D]``; slot ``[I, N]`` int, -1 = dropped; weight ``[I, N]``: a slot's value is the weighted SUM of
    its tokens; None = their mean weighted by size ``[I, N]``. Summed in float32 (float64 stays) in the order of the
    tokens, so the same tokens give the same bits on every run; differentiable in features and weight. A slot of one
    token of weight 1 (or no weight) keeps its value bit for bit; a slot without tokens is 0.
    """
    pictures, _, width = features.shape
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    place = slot.where(slot >= 0, slots) + (slots + 1) * torch.arange(pictures, device=slot.device)[:, None]
    place = place.flatten()  # a spare slot at each picture's end takes what is dropped, NaN and all
    if weight is None:
        total = _add(size.flatten().to(dtype), place, pictures * (slots + 1))
        weight = size.to(dtype) / total[place].view_as(size)  # exactly 1 for a token alone
    rows = features.to(dtype) * weight.to(dtype)[..., None]
    out = _add(rows.flatten(0, 1), place, pictures * (slots + 1))
    return out.view(pictures, slots + 1, width)[:, :slots].to(features.dtype)


def _add(rows: Tensor, place: Tensor, slots: int) -> Tensor:
    """``[slots, ...]``: sums of ``rows [M, ...]`` by ``place [M]``, in the order of the rows on every device."""
    out = rows.new_full((slots, *rows.shape[1:]), -0.0)  # -0.0 + x is x for every x, 0.0 + -0.0 is not
    if rows.is_cuda:
        return out.index_put((place,), rows, accumulate=True)  # sorts; index_add would race
    return out.index_add(0, place, rows)
