"""The best match of every token by cosine, without the matrix of cosines.

value[n] = max over the allowed targets m of  a_n . b_m / (|a_n| |b_m|),    index[n] = the lowest m that has it
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.kernels.dispatch import device_of, use_triton

BLOCK = 1 << 20  # cosines held at a time (4 MiB of float32)


def unit(features: Tensor) -> Tensor:
    """``features [..., d]`` divided by their L2 norm, in float32 (float64 stays); a zero vector stays zero."""
    wide = features if features.dtype == torch.float64 else features.float()
    return wide / wide.norm(dim=-1, keepdim=True).clamp_min(1e-12)


@torch.no_grad()
def match(a: Tensor, b: Tensor, allowed: Tensor, skip_self: bool = False, rows: int = 0) -> tuple[Tensor, Tensor]:
    """The index ``[I, N]`` of the allowed target of largest cosine, and that cosine ``[I, N]``.

    a ``[I, N, d]``; targets b ``[I, K, d]``; allowed ``[I, K]`` bool. ``skip_self``: token n may not choose target n.
    Ties go to the lower index. A token without a target (a NaN in it, none allowed) gets -1 and a cosine of -inf; a
    target with a NaN is never chosen. Only ``rows`` x K cosines exist at a time (0: as many as fit a small block), and
    none at all in the kernel.
    """
    return _match(a, b, allowed, skip_self, rows)


@torch.library.custom_op("vtc::match", mutates_args=())
def _match(a: Tensor, b: Tensor, allowed: Tensor, skip_self: bool, rows: int) -> tuple[Tensor, Tensor]:
    if use_triton(a, b):
        from vtc.kernels import match_triton as kernel

        with device_of(a):
            return kernel.match(a, b, allowed, skip_self)
    return reference(a, b, allowed, skip_self, rows)


@_match.register_fake
def _(a, b, allowed, skip_self, rows):
    dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
    return a.new_empty(a.shape[:2], dtype=torch.int64), a.new_empty(a.shape[:2], dtype=dtype)


def reference(a: Tensor, b: Tensor, allowed: Tensor, skip_self: bool, rows: int) -> tuple[Tensor, Tensor]:
    """The definition in torch, ``rows`` tokens at a time."""
    if b.shape[1] == 0 or a.shape[1] == 0:
        none = torch.full(a.shape[:2], -1, device=a.device)
        return none, none.to(unit(a[..., :0]).dtype).fill_(-torch.inf)
    rows = rows or max(1, BLOCK // max(1, b.shape[0] * b.shape[1]))
    columns, column = unit(b).mT, torch.arange(b.shape[1], device=b.device)
    best = columns.new_empty(a.shape[:2])  # made before the blocks: kept results between freed blocks would split the
    index = torch.empty_like(best, dtype=torch.int64)  # heap, and each next block grow it (400 MiB at 16,384 tokens)
    for start in range(0, a.shape[1], rows):
        start = max(0, min(start, a.shape[1] - rows))  # a last block of one row would be rounded otherwise
        part = slice(start, start + rows)
        cosine = unit(a[:, part]) @ columns
        refused = ~allowed[:, None] | cosine.isnan()
        if skip_self:
            refused |= torch.arange(start, start + cosine.shape[1], device=column.device)[:, None] == column
        best[:, part], index[:, part] = cosine.masked_fill_(refused, -torch.inf).max(dim=2)
    return index.masked_fill_(best == -torch.inf, -1), best
