"""Learning which keys stay: a forward is hard, its backward tells every key what its being there is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BLOCK = 1 << 22  # attention weights held at a time
ALONE = 1e-4  # the least share that is left for the other keys where one key has (nearly) all attention


@dataclass(eq=False)
class Gates:
    """The gates of an attention call, over all C columns there are, those left out as well.

    gate ``[B, C]``: its gradient is wanted, its value does not matter; keys and values ``[B, Hk, C, d]``, bias
    ``[B, h, n, C]``: what is added to logits; kept ``[B, C]`` bool.
    """

    gate: Tensor
    keys: Tensor
    values: Tensor
    bias: Tensor
    kept: Tensor

    def through(self, out: Tensor, q: Tensor, scale: float, softcap: float | None = None) -> Tensor:
        """``out [B, n, H, d]``, unchanged, of queries ``q [B, H, n, d]``; its gradient reaches the gates."""
        rest = (q, self.keys, self.values, self.bias, self.kept)
        return _Through.apply(out, self.gate, scale, softcap, *(x.detach() for x in rest))


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, out: Tensor, gate: Tensor, scale: float, softcap: float | None, *rest: Tensor) -> Tensor:
        ctx.save_for_backward(out, *rest)
        ctx.scale, ctx.softcap, ctx.dtype = scale, softcap, gate.dtype
        return out.view_as(out)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        out, q, k, v, bias, kept = ctx.saved_tensors
        credit = key_credit(grad, out, q, k, v, bias, kept, ctx.scale, ctx.softcap)
        return grad, credit.to(ctx.dtype), None, None, None, None, None, None, None


@torch.no_grad()
def key_credit(
    grad: Tensor,
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    kept: Tensor,
    scale: float,
    softcap: float | None = None,
) -> Tensor:
    """``[B, C]``: for each key the inner product of ``grad [B, n, H, d]`` with what attention gives with this key less
    what it gives without it, the others as they are; ``out [B, n, H, d]`` is what it gives over the ``kept [B, C]``.

    q ``[B, H, n, d]``, k and v ``[B, Hk, C, d]``, bias ``[B, h, n, C]`` (h is 1 or H).
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    groups = q.shape[1] // k.shape[1]
    k, v = (x.to(wide).repeat_interleave(groups, dim=1).transpose(2, 3) for x in (k, v))
    kept = kept[:, None, None]
    total = torch.zeros(q.shape[0], k.shape[3], dtype=wide, device=q.device)
    step = max(1, BLOCK // (q.shape[0] * q.shape[1] * k.shape[3]))
    for rows in torch.arange(q.shape[2], device=q.device).split(step):
        logit = q[:, :, rows].to(wide) @ k * scale
        logit = logit if softcap is None else softcap * (logit / softcap).tanh()
        logit = logit + bias[:, :, rows]
        least = torch.finfo(wide).min
        odds = logit - logit.masked_fill(~kept, least).logsumexp(dim=3, keepdim=True)  # log, against all that are kept
        share = odds.clamp(max=0).exp()
        with_less_without = torch.where(kept, share / (1 - share).clamp_min(ALONE), odds.sigmoid())
        pull, own = (x[:, rows].to(wide).transpose(1, 2) for x in (grad, out))
        total += (with_less_without * (pull @ v - (pull * own).sum(dim=3, keepdim=True))).sum(dim=(1, 2))
    return total
