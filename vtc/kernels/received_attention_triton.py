"""Received attention in two passes over the keys: the log-sum-exp of the listed rows, then the sums down the columns.

No values, no matrix, no atomics. Both passes read a key tile once for all query heads that share it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtc.kernels.dispatch import arch, config, interpreted, power, precision
from vtc.kernels.tile_triton import dot

LOG2E = 1.4426950408889634
# architecture -> (rows in a tile, keys in a tile, warps, stages)
LSE = {80: (64, 64, 4, 2), 90: (64, 64, 4, 3)}
SUM = {80: (32, 64, 4, 2)}
FLOAT32 = {80: (16, 32, 4, 2)}  # both passes; spills registers in heads wider than 128
PROGRAMS = 264  # enough to fill the largest GPU twice
LENGTHS = ["R", "NK", "PER"]


@triton.jit(do_not_specialize=LENGTHS)
def row_lse(
    Q, K, BIAS, END, OUT, scale, sqb, sqh, sqr, skb, skh, skn, HK, G, R, NK, PER,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_END: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``OUT [splits, B, HK, G * R]``: log-sum-exp over this split's PER keys; a row for each of the G heads."""
    split, bh = tl.program_id(1), tl.program_id(2)
    b, hk = (bh // HK).to(tl.int64), (bh % HK).to(tl.int64)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    head, row, real = m // R, m % R, m < G * R
    n, d = tl.arange(0, BN), tl.arange(0, DP)
    place = (hk * G + head).to(tl.int64) * sqh + row.to(tl.int64) * sqr
    q = tl.load(Q + b * sqb + place[:, None] + d[None, :], mask=real[:, None] & (d[None, :] < D), other=0.0)
    low = split * PER
    high = tl.minimum(low + PER, NK)
    end = tl.where(real, high, 0)
    if HAS_END:
        end = tl.minimum(tl.load(END + b * R + row, mask=real, other=0), end)
        high = tl.max(end, 0)
    top = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    for start in tl.range(low, high, BN):
        j = start + n
        tile = K + b * skb + hk * skh + j[None, :].to(tl.int64) * skn
        k = tl.load(tile + d[:, None], mask=(j < high)[None, :] & (d[:, None] < D), other=0.0)
        x = dot(q, k, PRECISION, UPCAST) * scale
        seen = j[None, :] < end[:, None]
        if HAS_BIAS:
            bias = tl.load(BIAS + b * NK + j, mask=j < high, other=float("-inf"))
            seen = seen & (bias != float("-inf"))[None, :]
            x += (bias * 1.4426950408889634)[None, :]
        x = tl.where(seen, x, float("-inf"))
        peak = tl.maximum(top, tl.max(x, 1))
        base = tl.where(peak == float("-inf"), 0.0, peak)  # a row that has seen nothing yet
        total = total * tl.exp2(top - base) + tl.sum(tl.exp2(x - base[:, None]), 1)
        top = peak
    lse = (top + tl.log2(tl.where(total == 0.0, 1.0, total))) * 0.6931471805599453
    lines = split.to(tl.int64) * tl.num_programs(2) + bh
    tl.store(OUT + lines * G * R + m, lse, mask=real)


@triton.jit(do_not_specialize=LENGTHS)
def column_sum(
    Q, K, BIAS, END, LSE, WEIGHTS, OUT, scale, sqb, sqh, sqr, skb, skh, skn, HK, G, R, NK,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_END: tl.constexpr, HAS_WEIGHTS: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``OUT [B, HK * G, NK]``: one key tile, all rows of all its query heads."""
    bh = tl.program_id(1)
    b, hk = (bh // HK).to(tl.int64), (bh % HK).to(tl.int64)
    first = tl.program_id(0) * BN
    j, r, d = first + tl.arange(0, BN), tl.arange(0, BM), tl.arange(0, DP)
    shown = j < NK
    tile = K + b * skb + hk * skh + j[:, None].to(tl.int64) * skn
    k = tl.load(tile + d[None, :], mask=shown[:, None] & (d[None, :] < D), other=0.0)
    bias = tl.zeros([BN], tl.float32)
    if HAS_BIAS:
        bias = tl.load(BIAS + b * NK + j, mask=shown, other=float("-inf")) * 1.4426950408889634
        shown = shown & (bias != float("-inf"))
    for g in tl.range(0, G):
        h = hk * G + g
        total = tl.zeros([BN], tl.float32)
        for start in tl.range(0, R, BM):
            i = start + r
            real = i < R
            rows = Q + b * sqb + h * sqh + i[None, :].to(tl.int64) * sqr
            q = tl.load(rows + d[:, None], mask=real[None, :] & (d[:, None] < D), other=0.0)
            lse = tl.load(LSE + (b * HK * G + h) * R + i, mask=real, other=float("-inf")) * 1.4426950408889634
            seen = shown[:, None] & (lse != float("-inf"))[None, :]
            if HAS_END:
                seen = seen & (j[:, None] < tl.load(END + b * R + i, mask=real, other=0)[None, :])
            x = dot(k, q, PRECISION, UPCAST) * scale + bias[:, None] - lse[None, :]
            p = tl.where(seen, tl.exp2(tl.where(seen, x, 0.0)), 0.0)
            if HAS_WEIGHTS:
                p = tl.where(seen, p * tl.load(WEIGHTS + b * R + i, mask=real, other=0.0)[None, :], 0.0)
            total += tl.sum(p, 1)
        tl.store(OUT + (b * HK * G + h) * NK + j, total, mask=j < NK)


def received_attention(
    q: Tensor, k: Tensor, bias: Tensor | None, end: Tensor | None, lse: Tensor | None, weights: Tensor | None,
    scale: float,
) -> Tensor:  # fmt: skip
    """``[B, H, N_k]`` for the rows ``q [B, H, R, d]``; bias ``[B, N_k]``, -inf = hidden; end, weights ``[B, R]``."""
    if q.dtype != k.dtype:
        q, k = q.float(), k.float()
    q, k = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k))
    (batch, heads, rows, width), (key_heads, keys) = q.shape, k.shape[1:3]
    out = torch.zeros(batch, heads, keys, device=q.device)
    if not out.numel() or not rows:
        return out
    bias, weights = (None if t is None else t.float().contiguous() for t in (bias, weights))
    end = None if end is None else end.expand(batch, rows).int().contiguous()
    group = heads // key_heads
    common = dict(
        D=width, DP=power(width), HAS_BIAS=bias is not None, HAS_END=end is not None,
        PRECISION=precision(q), UPCAST=interpreted(), enable_fp_fusion=True,
    )  # fmt: skip
    strides = (*q.stride()[:3], *k.stride()[:3], key_heads, group, rows, keys)
    given = (q, k, q if bias is None else bias, q if end is None else end)
    scale *= LOG2E
    if lse is None:
        lse = _lse(given, scale, strides, common)
    bm, bn, warps, stages = config(FLOAT32 if q.dtype == torch.float32 else SUM, arch(q))
    column_sum[(triton.cdiv(keys, bn), batch * key_heads)](
        *given, lse.float().contiguous(), q if weights is None else weights, out, scale, *strides,
        HAS_WEIGHTS=weights is not None, BM=min(bm, power(rows)), BN=bn, num_warps=warps, num_stages=stages, **common,
    )  # fmt: skip
    return out


def _lse(given: tuple[Tensor, ...], scale: float, strides: tuple[int, ...], common: dict) -> Tensor:
    """``[B, H, R]``: log-sum-exp of each row, in splits over the keys where the rows alone do not fill the GPU."""
    (batch, heads, rows, _), (key_heads, keys) = given[0].shape, given[1].shape[1:3]
    bm, bn, warps, stages = config(FLOAT32 if given[0].dtype == torch.float32 else LSE, arch(given[0]))
    many = heads // key_heads * rows
    bm = min(bm, power(many))
    programs = triton.cdiv(many, bm) * batch * key_heads
    splits = max(1, min(triton.cdiv(keys, 4 * bn), PROGRAMS // programs))
    per = triton.cdiv(triton.cdiv(keys, splits), bn) * bn
    splits = triton.cdiv(keys, per)
    out = torch.empty(splits, batch, heads, rows, device=given[0].device)
    row_lse[(triton.cdiv(many, bm), splits, batch * key_heads)](
        *given, out, scale, *strides, per, BM=bm, BN=bn, num_warps=warps, num_stages=stages, **common
    )  # fmt: skip
    return out[0] if splits == 1 else out.logsumexp(0)


def aot_cases(chip: int) -> list[dict]:
    """What to compile ahead of time for ``chip`` (80, 90): one entry a kernel, head width and dtype."""
    integers = ("sqb", "sqh", "sqr", "skb", "skh", "skn", "HK", "G", "R", "NK", "PER")
    cases = []
    for kernel, table in ((row_lse, LSE), (column_sum, SUM)):
        for width, dtype, few in (
            (128, "bf16", False), (128, "bf16", True), (64, "bf16", False), (80, "bf16", False), (256, "bf16", False),
            (128, "fp16", False), (128, "fp32", False),
        ):  # fmt: skip
            bm, bn, warps, stages = config(FLOAT32 if dtype == "fp32" else table, chip)
            bm = 16 if few else bm
            types = dict.fromkeys(("BIAS", "LSE", "WEIGHTS", "OUT"), "*fp32") | dict.fromkeys(integers, "i32")
            types |= {"Q": f"*{dtype}", "K": f"*{dtype}", "END": "*i32", "scale": "fp32"}
            fixed: dict = dict(D=width, DP=power(width), BM=bm, BN=bn, HAS_BIAS=True, HAS_END=True, UPCAST=False)
            fixed |= {"PRECISION": "tf32x3" if dtype == "fp32" else "ieee"}
            if kernel is column_sum:
                fixed |= {"HAS_WEIGHTS": True}
            cases.append(
                dict(
                    name=f"{kernel.__name__} {dtype} D{width} {bm}x{bn}",
                    kernel=kernel,
                    signature={a: types[a] for a in kernel.arg_names if a not in fixed},
                    constexprs=fixed,
                    options=dict(num_warps=warps, num_stages=stages),
                    aligned=integers[:6],
                )
            )
    return cases
