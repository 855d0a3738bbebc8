"""The nearest target of every token by cosine, a block of rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(features: Tensor) -> Tensor:
    """``features [..., d]`` divided by their L2 norm, in float32 (float64 stays); a zero vector stays zero."""
    wide = features if features.dtype == torch.float64 else features.float()
    return wide / wide.norm(dim=-1, keepdim=True).clamp_min(1e-12)


@torch.no_grad()
def nearest(
    queries: Tensor, targets: Tensor, allowed: Tensor, skip_self: bool = False, rows: int = 512
) -> tuple[Tensor, Tensor]:
    """The index ``[I, N]`` of the allowed target of largest cosine, and that cosine ``[I, N]``.

    queries ``[I, N, d]``; targets ``[I, K, d]``; allowed ``[I, K]`` bool. ``skip_self``: query n may not choose target
    n. Ties go to the lower index. A query without a target (a NaN in it, none allowed) gets -1 and a cosine of -inf;
    a target with a NaN is never chosen. Only ``rows`` x K cosines exist at a time.
    """
    if targets.shape[1] == 0:
        none = torch.full(queries.shape[:2], -1, device=queries.device)
        return none, none.to(unit(queries[..., :0]).dtype).fill_(-torch.inf)
    columns, column = unit(targets).mT, torch.arange(targets.shape[1], device=targets.device)
    best, index = [], []
    for start in range(0, queries.shape[1], rows):
        cosine = unit(queries[:, start : start + rows]) @ columns
        refused = ~allowed[:, None] | cosine.isnan()
        if skip_self:
            refused = refused | (torch.arange(start, start + cosine.shape[1], device=column.device)[:, None] == column)
        top = cosine.masked_fill_(refused, -torch.inf).max(dim=2)
        best.append(top.values)
        index.append(top.indices)
    cosine = torch.cat(best, dim=1)
    return torch.cat(index, dim=1).masked_fill(cosine == -torch.inf, -1), cosine
