"""Which keys the rows of a question look at most, in one layer."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1 << 22  # attention weights held at a time (16 MiB of float32)


@torch.no_grad()
def largest_attention(q: Tensor, k: Tensor, bias: Tensor, asking: Tensor, scale: float) -> Tensor:
    """``[B, C]``: for each key the most attention that any of the rows gives it, mean over heads, in float32 (float64
    stays).

    q ``[B, H, R, d]`` and k ``[B, Hk, C, d]``, rotated already; query head h reads key head ``h // (H / Hk)``. bias
    ``[B or 1, h, R, C]``, h of 1 or H: what is added to the logits of each row. asking ``[B, R]`` bool: the rows that
    count.
    """
    (batch, heads, rows), (key_heads, keys) = q.shape[:3], k.shape[1:3]
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    k = k.to(dtype).mT[:, :, None]
    most = torch.zeros(batch, keys, dtype=dtype, device=q.device)
    step = max(1, BLOCK // max(1, batch * heads * keys))
    for part in (slice(start, start + step) for start in range(0, rows, step)):
        logits = (q[:, :, part].to(dtype).unflatten(1, (key_heads, -1)) @ k).flatten(1, 2) * scale
        weights = (logits + bias[:, :, part].to(dtype)).softmax(dim=-1).mean(dim=1)
        most = torch.maximum(most, weights.masked_fill(~asking[:, part, None], 0.0).amax(dim=1))
    return most
