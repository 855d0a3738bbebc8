"""How much attention every key receives from a few query rows, without the attention matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.kernels.dispatch import device_of, use_triton

BLOCK = 1 << 22  # attention weights held at a time (16 MiB of float32)
WIDEST = 256  # head width of the Triton kernel


@torch.no_grad()
def received_attention(
    q: Tensor,
    k: Tensor,
    rows: Tensor | None = None,
    end: Tensor | None = None,
    allowed: Tensor | None = None,
    log_size: Tensor | None = None,
    scale: float | None = None,
    lse: Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """``[B, H, N_k]``: for each key j the SUM over the listed rows i of

        weights_i * softmax_j( scale * q_i . k_j + log_size_j )    over the keys that row i may see,

    in float32 (float64 stays). The mean over rows or heads is the caller's.

    q ``[B, H, N_q, d]`` and k ``[B, Hk, N_k, d]``, rotated already; query head h reads key head ``h // (H / Hk)``.
    rows ``[R]`` or ``[B, R]``: the query rows (-1 = none; default all of them). end ``[B, R]``: row i sees the keys
    before ``end`` (default all). allowed ``[B, N_k]`` bool: keys that exist. log_size ``[B, N_k]``: log of how many
    tokens a key stands for. scale: default ``d ** -0.5``. lse ``[B, H, R]``: the log-sum-exp of each listed row, where
    the model's attention kernel gave it (-inf = sees nothing). weights ``[B, R]``: default 1. A row that sees no key
    gives nothing to any. log_size and weights may also be of pairs, ``[B, R, N_k]``; such, and heads wider than
    ``WIDEST``, run without the Triton kernel.
    """
    heads, width = q.shape[1], q.shape[3]
    if heads % k.shape[1]:
        raise ValueError(f"{heads} query heads over {k.shape[1]} key heads; give a multiple of the key heads")
    if rows is not None:
        rows = rows.expand(q.shape[0], -1)
        q = q.gather(2, rows.clamp(min=0)[:, None, :, None].expand(-1, heads, -1, width))
    return _received(q, k, rows, end, allowed, log_size, lse, weights, width**-0.5 if scale is None else scale)


@torch.library.custom_op("vtc::received_attention", mutates_args=())
def _received(
    q: Tensor,
    k: Tensor,
    rows: Tensor | None,
    end: Tensor | None,
    allowed: Tensor | None,
    log_size: Tensor | None,
    lse: Tensor | None,
    weights: Tensor | None,
    scale: float,
) -> Tensor:
    of_pairs = any(t is not None and t.dim() == 3 for t in (log_size, weights))
    if of_pairs or q.shape[3] > WIDEST or not use_triton(q, k):
        return reference(q, k, rows, end, allowed, log_size, lse, weights, scale)
    from vtc.kernels import received_attention_triton as kernel

    if rows is not None:  # a row that is not there sees nothing
        end = torch.full_like(rows, k.shape[2]) if end is None else end
        end = end.where(rows >= 0, 0)
    bias = log_size
    if allowed is not None:
        bias = torch.zeros(allowed.shape, device=q.device) if bias is None else bias.float()
        bias = bias.masked_fill(~allowed, -torch.inf)
    with device_of(q):
        return kernel.received_attention(q, k, bias, end, lse, weights, scale)


@_received.register_fake
def _(q, k, rows, end, allowed, log_size, lse, weights, scale):
    return q.new_empty(*q.shape[:2], k.shape[2], dtype=_wide(q))


def _wide(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def reference(
    q: Tensor,
    k: Tensor,
    rows: Tensor | None,
    end: Tensor | None,
    allowed: Tensor | None,
    log_size: Tensor | None,
    lse: Tensor | None,
    weights: Tensor | None,
    scale: float,
) -> Tensor:
    """The definition in torch, some rows ``q [B, H, R, d]`` at a time."""
    (batch, heads), (key_heads, keys), dtype = q.shape[:2], k.shape[1:3], _wide(q)
    q = q.unflatten(1, (key_heads, -1)).to(dtype) * scale
    k = k.to(dtype).mT[:, :, None]  # [B, Hk, 1, d, N_k]
    received = torch.zeros(batch, heads, keys, dtype=dtype, device=q.device)
    step = max(1, BLOCK // max(1, batch * heads * keys))
    for start in range(0, q.shape[3], step):
        part = slice(start, start + step)
        logits = q[:, :, :, part] @ k  # [B, Hk, H / Hk, step, N_k]
        if log_size is not None:
            bias = log_size[:, part] if log_size.dim() == 3 else log_size[:, None]
            logits = logits + bias[:, None, None].to(dtype)
        hidden = _hidden(rows, end, allowed, part, keys, q.device)
        if hidden is not None:
            logits = logits.masked_fill(hidden, -torch.inf)
        if lse is None:
            given = logits.softmax(dim=-1)
        else:
            total = lse.unflatten(1, (key_heads, -1))[:, :, :, part, None].to(dtype)
            given = (logits - total).exp().masked_fill(total == -torch.inf, 0)
        if hidden is not None:
            given = given.masked_fill(hidden, 0)  # a row that sees nothing is NaN everywhere, and hidden everywhere
        if weights is not None:
            by = weights[:, part] if weights.dim() == 3 else weights[:, part, None]
            given = given * by[:, None, None].to(dtype)
        received += given.sum(dim=3).flatten(1, 2)
    return received


def _hidden(
    rows: Tensor | None, end: Tensor | None, allowed: Tensor | None, part: slice, keys: int, device: torch.device
) -> Tensor | None:
    """``[B, 1, 1, step, N_k]`` (or broadcastable): the keys each row of ``part`` may not see; None = sees all."""
    hidden = None if allowed is None else ~allowed[:, None]
    if end is not None:
        late = torch.arange(keys, device=device) >= end[:, part, None]
        hidden = late if hidden is None else hidden | late
    if rows is not None:
        absent = rows[:, part, None] < 0
        hidden = absent if hidden is None else hidden | absent
    return None if hidden is None else hidden[:, None, None]
