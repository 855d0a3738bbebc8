"""What the tests of attention over merged tokens share: the definition in float64, inputs, and how close is close."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.tolerances import assert_close
from vtc.kernels.dispatch import mode
from vtc.kernels.merged_attention import causal_end

DEVICE = "cuda" if torch.cuda.is_available() and mode() != "reference" else "cpu"
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made.to(DEVICE, dtype)


def inputs(batch: int, heads: int, key_heads: int, rows: int, keys: int, width: int, dtype: torch.dtype):
    """q, k, v as projections give them (``[B, N, H, d]`` in memory) and log_size with a hole (-inf)."""
    q = draw(batch, rows, heads, width, dtype=dtype, seed=1).transpose(1, 2)
    k = draw(batch, keys, key_heads, width, dtype=dtype, seed=2).transpose(1, 2)
    v = draw(batch, keys, key_heads, width, dtype=dtype, seed=3).transpose(1, 2)
    log_size = draw(batch, keys, dtype=torch.promote_types(dtype, torch.float32), seed=4).abs() * 2
    log_size[:, keys // 3] = -torch.inf
    return q, k, v, log_size


def ends(kind: str, batch: int, rows: int, keys: int) -> Tensor | None:
    """``all``: None. ``causal``: by position, with gaps, the last prompt padded. ``any``: anything in any order, rows
    that see nothing and counts beyond the keys among it."""
    random = torch.Generator().manual_seed(rows)
    if kind == "all":
        return None
    if kind == "any":
        end = torch.randint(-3, keys + 9, (batch, rows), generator=random, dtype=torch.int32)
        end[:, rows // 2] = 0
        return end.to(DEVICE)
    query, key = (
        torch.stack([torch.randperm(2 * max(rows, keys), generator=random)[:n].sort().values for _ in range(batch)])
        for n in (rows, keys)
    )
    length = torch.tensor([keys] * (batch - 1) + [keys - keys // 4])[:, None]
    return causal_end(query, key).minimum(length.int()).to(DEVICE)


def define(q: Tensor, k: Tensor, v: Tensor, log_size: Tensor | None, end: Tensor | None, scale: float | None = None):
    """``(out, lse)`` by the definition, differentiable by autograd; a row that sees nothing is 0 and -inf."""
    group, keys = q.shape[1] // k.shape[1], k.shape[2]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    logits = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    hidden = torch.zeros_like(logits, dtype=torch.bool)
    if log_size is not None:
        hidden = hidden | (log_size == -torch.inf)[:, None, None]
        logits = logits + log_size[:, None, None]
    if end is not None:
        hidden = hidden | (torch.arange(keys, device=q.device) >= end[:, None, :, None])
    dead = hidden.all(-1, keepdim=True)
    logits = torch.where(dead, 0.0, logits.masked_fill(hidden, -torch.inf))
    lse = logits.logsumexp(-1).masked_fill(dead[..., 0], -torch.inf)
    return (logits.softmax(-1) * ~dead) @ v, lse


def close(name: str, got: Tensor, want: Tensor) -> None:
    """Within the table's tolerance of got's dtype once both are scaled to a largest value of 1; -inf in the same
    places."""
    gone = want == -torch.inf
    assert torch.equal(got == -torch.inf, gone), f"{name}: -inf elsewhere"
    got, want = got.masked_fill(gone, 0), want.masked_fill(gone, 0)
    size = want.abs().max().clamp_min(1e-6) if want.numel() else 1.0
    assert_close(name, (got.double() / size).to(got.dtype), want.double() / size)


def name(case: object) -> str:
    """A short id of a parameter."""
    if isinstance(case, torch.dtype):
        return str(case).removeprefix("torch.")
    return "-".join(map(str, case)) if isinstance(case, tuple) else str(case)


each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=name)
