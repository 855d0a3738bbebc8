"""Attention over merged tokens: a key that stands for s tokens weighs s in every softmax."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vtc.kernels.dispatch import use_triton
from vtc.kernels.heads import like_heads

BLOCK = 1 << 22  # attention weights the reference holds at a time (16 MiB of float32)
WIDEST = 256  # heads that the kernels have tiles for; wider ones take the reference


def merged_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_size: Tensor | None = None,
    end: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """``out [B, H, N_q, d]`` and ``lse [B, H, N_q]`` (float32; float64 stays), for query row i

        logit_ij = scale * q_i . k_j + log_size_j                for the keys j < end_i
        lse_i    = log sum_j exp(logit_ij)
        out_i    = sum_j exp(logit_ij - lse_i) v_j

    q ``[B, H, N_q, d]``; k and v ``[B, Hk, N_k, d]``; query head h reads key head ``h // (H / Hk)``. log_size
    ``[B, N_k]``: log of how many tokens a key stands for (-inf = none: nobody sees it). end ``[B, N_q]`` int: how many
    keys a row sees (default all). Where keys stand in order of position that says causal with gaps, padding on the
    right, chunked prefill and prefix-LM. scale: default ``d ** -0.5``. A row that sees no key gets 0, and -inf.

    Differentiable in q, k, v and log_size, through both results.
    """
    check(q, k, v, log_size, end)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return torch.ops.vtc.merged_attention(q, k, v, log_size, end, scale)


def causal_end(query_position: Tensor, key_position: Tensor) -> Tensor:
    """``end [B, N_q]`` of the rule "a row sees the keys at or before its position".

    query_position ``[B, N_q]`` in any order, key_position ``[B, N_k]`` ascending (equal positions allowed).
    """
    return torch.searchsorted(key_position.contiguous(), query_position.contiguous(), right=True).int()


def check(q: Tensor, k: Tensor, v: Tensor, log_size: Tensor | None, end: Tensor | None) -> None:
    """Raises ValueError where the shapes or dtypes do not fit together."""
    (batch, heads, rows, width), (keys, key_heads) = q.shape, (k.shape[2], k.shape[1])
    if heads % key_heads:
        raise ValueError(f"{heads} query heads over {key_heads} key heads; give a multiple of the key heads")
    if k.shape != (batch, key_heads, keys, width) or v.shape != k.shape:
        raise ValueError(f"k {tuple(k.shape)} and v {tuple(v.shape)} must be alike and fit q {tuple(q.shape)}")
    if not q.dtype == k.dtype == v.dtype:
        raise ValueError(f"q is {q.dtype}, k {k.dtype} and v {v.dtype}; give them one dtype")
    if log_size is not None and log_size.shape != (batch, keys):
        raise ValueError(f"log_size is {tuple(log_size.shape)}; give one value a key: {(batch, keys)}")
    if end is not None and end.shape != (batch, rows):
        raise ValueError(f"end is {tuple(end.shape)}; give one count of keys a row: {(batch, rows)}")


# ---------------------------------------------------------------- the operator: kernel or reference, fake, gradient


@torch.library.custom_op("vtc::merged_attention", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_size: Tensor | None, end: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    if in_kernel(q, k, v, log_size, end):
        from vtc.kernels.merged_attention_triton import forward

        return forward(q, k, v, log_size, end, scale)
    return reference(q, k, v, log_size, end, scale)


@torch.library.custom_op("vtc::merged_attention_backward", mutates_args=())
def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_size: Tensor | None,
    end: Tensor | None,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if in_kernel(q, k, v, log_size, end):
        from vtc.kernels.merged_attention_backward_triton import backward

        return backward(q, k, v, log_size, end, out, lse, grad_out, grad_lse, scale)
    return reference_backward(q, k, v, log_size, end, out, lse, grad_out, grad_lse, scale)


def in_kernel(q: Tensor, k: Tensor, *more: Tensor | None) -> bool:
    """Whether the Triton kernels take this: something to compute, and heads they have tiles for."""
    return use_triton(q, k, *more) and q.numel() > 0 and k.numel() > 0 and q.shape[-1] <= WIDEST


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums are kept in: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@_forward.register_fake
def _(q, k, v, log_size, end, scale):
    return like_heads(q), q.new_empty(q.shape[:3], dtype=wide(q.dtype))


@_backward.register_fake
def _(q, k, v, log_size, end, out, lse, grad_out, grad_lse, scale):
    return like_heads(q), like_heads(k), like_heads(v), q.new_empty(k.shape[0], k.shape[2], dtype=wide(q.dtype))


def _keep(ctx, inputs, output) -> None:
    q, k, v, log_size, end, ctx.scale = inputs
    ctx.save_for_backward(q, k, v, log_size, end, *output)


def _gradient(ctx, grad_out: Tensor, grad_lse: Tensor):
    saved = ctx.saved_tensors  # unpacked once: activation checkpointing allows no more
    dq, dk, dv, size = torch.ops.vtc.merged_attention_backward(*saved, grad_out, grad_lse, ctx.scale)
    log_size = saved[3]
    return dq, dk, dv, None if log_size is None else size.to(log_size.dtype), None, None


_forward.register_autograd(_gradient, setup_context=_keep)


# ---------------------------------------------------------------- the reference: a block of rows at a time


def reference(
    q: Tensor, k: Tensor, v: Tensor, log_size: Tensor | None, end: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """The definition, in float32 (float64 stays)."""
    out, lse = like_heads(q), q.new_empty(q.shape[:3], dtype=wide(q.dtype))
    values = v.to(wide(q.dtype))[:, :, None]
    for part, weights, norm in _weights(q, k, log_size, end, scale):
        out[:, :, part] = (weights @ values).flatten(1, 2).to(out.dtype)
        lse[:, :, part] = norm.flatten(1, 2)
    return out, lse


def reference_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_size: Tensor | None,
    end: Tensor | None,
    out: Tensor,
    lse: Tensor,
    grad_out: Tensor,
    grad_lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and log_size ``[B, N_k]``. With p the weights, ``delta_i = dout_i . out_i - dlse_i`` and
    ``ds_ij = p_ij (dout_i . v_j - delta_i)``: dlog_size = sum_i ds, dq = scale ds k, dk = scale ds^T q, dv = p^T dout.
    """
    dtype, heads = wide(q.dtype), k.shape[1]
    dq = like_heads(q)
    keys, values = (x.to(dtype)[:, :, None] for x in (k, v))
    dk, dv = (torch.zeros_like(x[:, :, 0]) for x in (keys, values))
    size = dk.new_zeros(k.shape[0], k.shape[2])
    for part, weights, _ in _weights(q, k, log_size, end, scale):
        rows, given, result = (x[:, :, part].unflatten(1, (heads, -1)).to(dtype) for x in (q, grad_out, out))
        delta = (given * result).sum(-1, keepdim=True) - grad_lse[:, :, part, None].unflatten(1, (heads, -1)).to(dtype)
        ds = weights * (given @ values.mT - delta)
        dq[:, :, part] = (ds @ keys * scale).flatten(1, 2).to(dq.dtype)
        dk += (ds.mT @ rows).sum(2) * scale
        dv += (weights.mT @ given).sum(2)
        size += ds.sum((1, 2, 3))
    return dq, like_heads(k).copy_(dk), like_heads(v).copy_(dv), size


def _weights(
    q: Tensor, k: Tensor, log_size: Tensor | None, end: Tensor | None, scale: float
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """For each block of rows: the rows, their weights ``[B, Hk, H / Hk, rows, N_k]`` and log-sum-exp."""
    dtype, (batch, heads, count, _), keys = wide(q.dtype), q.shape, k.shape[2]
    columns = k.to(dtype).mT[:, :, None]
    place = torch.arange(keys, device=q.device)
    step = max(1, BLOCK // max(1, batch * heads * keys))
    for start in range(0, count, step):
        part = slice(start, start + step)
        logits = q[:, :, part].unflatten(1, (k.shape[1], -1)).to(dtype) @ columns * scale
        if log_size is not None:
            logits = logits + log_size[:, None, None, None].to(dtype)
        if end is not None:
            logits = logits.masked_fill((place >= end[:, part, None])[:, None, None], -torch.inf)
        lse = logits.logsumexp(-1)
        yield part, torch.exp(logits - lse.masked_fill(lse == -torch.inf, 0)[..., None]), lse
