"""Attention of one new token over a compressed cache, the keys split over many programs."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.kernels.heads import like_heads
from vtc.kernels.merged_attention import check, in_kernel, reference, wide


def decode_merged(
    q: Tensor, k: Tensor, v: Tensor, log_size: Tensor | None = None, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """``merged_attention`` for one query a head: ``out [B, H, 1, d]``, ``lse [B, H, 1]`` (float32; float64 stays).

        out = softmax_j( scale * q . k_j + log_size_j ) v_j

    q ``[B, H, 1, d]``; k and v ``[B, Hk, N_k, d]``; query head h reads key head ``h // (H / Hk)``. log_size
    ``[B, N_k]``: log of how many tokens a key stands for, -inf = a hole of the cache. scale: default ``d ** -0.5``.
    Where every key is a hole the result is 0, and lse -inf. Not differentiable: decoding has no gradient.
    """
    check(q, k, v, log_size, None)
    if q.shape[2] != 1:
        raise ValueError(f"q has {q.shape[2]} rows; decode_merged takes one, merged_attention takes many")
    return torch.ops.vtc.decode_merged(q, k, v, log_size, q.shape[-1] ** -0.5 if scale is None else float(scale))


@torch.library.custom_op("vtc::decode_merged", mutates_args=())
def _decode(q: Tensor, k: Tensor, v: Tensor, log_size: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    if in_kernel(q, k, v, log_size):
        from vtc.kernels.decode_merged_triton import decode

        return decode(q, k, v, log_size, scale)
    return reference(q, k, v, log_size, None, scale)


@_decode.register_fake
def _(q, k, v, log_size, scale):
    return like_heads(q), q.new_empty(q.shape[:3], dtype=wide(q.dtype))
