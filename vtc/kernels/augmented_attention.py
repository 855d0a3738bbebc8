"""Attention over merged tokens through stock attention kernels that take no bias (flash): two more columns."""

from __future__ import annotations

import torch
from torch import Tensor

MULTIPLE = 8  # flash attention wants heads whose width is a multiple of this


def augmented_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_size: Tensor | None = None,
    scale: float | None = None,
    is_causal: bool = False,
    attn_mask: Tensor | None = None,
) -> Tensor:
    """``[B, H, N_q, d]``: softmax_j( scale * q_i . k_j + log_size_j ) v_j by ``scaled_dot_product_attention``, which
    needs no mask for the sizes, and so may choose its flash kernel.

    q ``[B, H, N_q, d]``; k and v ``[B, Hk, N_k, d]``; log_size ``[B, N_k]``; is_causal and attn_mask as there. A key of
    size 0 (-inf) weighs nothing as long as its row sees another one. Differentiable in q, k, v and log_size.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    width, grouped = v.shape[-1], q.shape[1] != k.shape[1]
    if log_size is not None:
        q, k, v = augment(q, k, v, log_size, scale)
    attend = torch.nn.functional.scaled_dot_product_attention
    out = attend(q, k, v, attn_mask=attn_mask, is_causal=is_causal, scale=scale, enable_gqa=grouped)
    return out[..., :width]


def augment(q: Tensor, k: Tensor, v: Tensor, log_size: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v with heads that are wider, such that ``scale * q'_i . k'_j = scale * q_i . k_j + log_size_j``:

        q' = [q, 1, 1, 0...]    k' = [k, high, low, 0...]    v' = [v, 0, 0, 0...]

    high is ``log_size / scale`` rounded to k's dtype and low what the rounding left: together they keep twice its bits.
    """
    bias = (log_size.to(torch.promote_types(log_size.dtype, torch.float32)) / scale)[:, None, :, None]
    bias = bias.clamp(min=torch.finfo(k.dtype).min / 2).expand(-1, k.shape[1], -1, -1)
    high = bias.to(k.dtype)
    low = (bias - high.to(bias.dtype)).to(k.dtype)
    spare = -(q.shape[-1] + 2) % MULTIPLE
    ones = q.new_ones(()).expand(*q.shape[:-1], 2)
    zeros = v.new_zeros(()).expand(*v.shape[:-1], 2 + spare)
    q = torch.cat([q, ones, q.new_zeros(()).expand(*q.shape[:-1], spare)], dim=-1)
    k = torch.cat([k, high, low, zeros[..., :spare]], dim=-1)
    return q, k, torch.cat([v, zeros], dim=-1)
