"""The backward kernels of ``merged_attention``: the weights again from the log-sum-exp, and no atomics.

With p the weights, ``delta_i = dout_i . out_i - dlse_i`` and ``ds_ij = p_ij (dout_i . v_j - delta_i)``:
``dlog_size = sum_i ds``, ``dq = scale ds k``, ``dk = scale ds^T q``, ``dv = p^T dout``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtc.kernels.heads import like_heads
from vtc.kernels.merged_attention_triton import (
    LOG2E,
    TYPES,
    Table,
    aot_case,
    dense,
    load_rows,
    pick,
    shape_of,
    store_rows,
    tiles,
    unit_stride,
)  # fmt: skip
from vtc.kernels.tile_triton import dot

# As ``FORWARD``.
KEYS: Table = {
    0: {64: (16, 32, 8, 2), 128: (16, 32, 8, 2), 256: (16, 32, 8, 2)},
    80: {64: (32, 64, 8, 2), 128: (32, 64, 8, 2), 256: (16, 32, 8, 2)},
}
ROWS: Table = {
    0: {64: (16, 16, 4, 2), 128: (16, 16, 4, 2), 256: (16, 16, 4, 2)},
    80: {64: (64, 64, 4, 2), 128: (64, 64, 8, 2), 256: (32, 32, 8, 2)},
    90: {64: (64, 64, 4, 2), 128: (128, 64, 8, 2), 256: (64, 32, 8, 2)},
    120: {64: (64, 64, 4, 2), 128: (64, 64, 8, 2), 256: (32, 32, 8, 2)},
}
DELTA = 64  # rows of a tile of delta_kernel


@triton.jit(do_not_specialize=["rows"])
def delta_kernel(
    OUT, DOUT, DLSE, DELTA, sob, soh, son, sdb, sdh, sdn, rows,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """delta_i = dout_i . out_i - dlse_i. Grid (row tiles, H, B)."""
    first, h, b = tl.program_id(0) * BM, tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    out = load_rows(OUT + b * sob + h * soh, first, rows, son, BM, D, DP, True)
    grad = load_rows(DOUT + b * sdb + h * sdh, first, rows, sdn, BM, D, DP, True)
    i = first + tl.arange(0, BM)
    at = (b * tl.num_programs(1) + h) * rows + i
    delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1) - tl.load(DLSE + at, mask=i < rows, other=0.0)
    tl.store(DELTA + at, delta, mask=i < rows)


@triton.jit(do_not_specialize=["rows", "keys"])
def keys_kernel(
    Q, K, V, SIZE, END, LSE, DELTA, DOUT, FIRST, DK, DV, DSIZE, scale,
    sqb, sqh, sqn, skb, skh, skn, svb, svh, svn, sdb, sdh, sdn, gkb, gkh, gkn, gvb, gvh, gvn, groups, rows, keys,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HAS_SIZE: tl.constexpr, HAS_END: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """dk, dv and dlog_size of BN keys of one key head, over all its query heads. Grid (key tiles, Hk, B).

    FIRST ``[B, key tiles]``: the first row that sees any key of the tile; rows before it are not visited.
    """
    t, key_head, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    j0 = t * BN
    j = j0 + tl.arange(0, BN)
    K += b * skb + key_head.to(tl.int64) * skh
    V += b * svb + key_head.to(tl.int64) * svh
    k = load_rows(K, j0, keys, skn, BN, D, DP, True)
    v = load_rows(V, j0, keys, svn, BN, D, DP, True)
    bias = tl.where(j < keys, 0.0, float("-inf"))
    if HAS_SIZE:
        bias += tl.load(SIZE + b * keys + j, mask=j < keys, other=0.0) * LOG2E
    lo = 0
    if HAS_END:
        lo = tl.load(FIRST + b * tl.num_programs(0) + t) // BM * BM
    dk, dv = tl.zeros([BN, DP], tl.float32), tl.zeros([BN, DP], tl.float32)
    dsize = tl.zeros([BN], tl.float32)
    r = tl.arange(0, BM)
    for g in range(0, groups):
        head = key_head.to(tl.int64) * groups + g
        row = (b * tl.num_programs(1) * groups + head) * rows
        for s in tl.range(lo, rows, BM):
            i = s + r
            q = load_rows(Q + b * sqb + head * sqh, s, rows, sqn, BM, D, DP, True)
            grad = load_rows(DOUT + b * sdb + head * sdh, s, rows, sdn, BM, D, DP, True)
            lse = tl.load(LSE + row + i, mask=i < rows, other=float("-inf")) * LOG2E
            delta = tl.load(DELTA + row + i, mask=i < rows, other=0.0)
            seen = (lse > float("-inf"))[None, :] & (j < keys)[:, None]
            if HAS_END:
                seen = seen & (j[:, None] < tl.load(END + b * rows + i, mask=i < rows, other=0)[None, :])
            lse = tl.where(lse > float("-inf"), lse, 0.0)
            logit = dot(k, tl.trans(q), PRECISION, UPCAST) * (scale * LOG2E) + bias[:, None] - lse[None, :]
            weight = tl.where(seen, tl.exp2(logit), 0.0)  # [BN, BM]
            dv += dot(weight.to(grad.dtype), grad, PRECISION, UPCAST)
            ds = weight * (dot(v, tl.trans(grad), PRECISION, UPCAST) - delta[None, :])
            dsize += tl.sum(ds, 1)
            dk += dot(ds.to(q.dtype), q, PRECISION, UPCAST)
    store_rows(DK + b * gkb + key_head.to(tl.int64) * gkh, dk * scale, j0, keys, gkn, BN, D, DP)
    store_rows(DV + b * gvb + key_head.to(tl.int64) * gvh, dv, j0, keys, gvn, BN, D, DP)
    tl.store(DSIZE + (b * tl.num_programs(1) + key_head) * keys + j, dsize, mask=j < keys)


@triton.jit(do_not_specialize=["rows", "keys"])
def rows_kernel(
    Q, K, V, SIZE, END, LSE, DELTA, DOUT, DQ, scale,
    sqb, sqh, sqn, skb, skh, skn, svb, svh, svn, sdb, sdh, sdn, gqb, gqh, gqn, groups, rows, keys,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HAS_SIZE: tl.constexpr, HAS_END: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """dq of BM rows of one head. Grid (row tiles, H, B)."""
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BM
    h, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    head, key_head = h.to(tl.int64), (h // groups).to(tl.int64)
    i = first + tl.arange(0, BM)
    q = load_rows(Q + b * sqb + head * sqh, first, rows, sqn, BM, D, DP, True)
    grad = load_rows(DOUT + b * sdb + head * sdh, first, rows, sdn, BM, D, DP, True)
    row = (b * tl.num_programs(1) + h) * rows
    lse = tl.load(LSE + row + i, mask=i < rows, other=float("-inf")) * LOG2E
    delta = tl.load(DELTA + row + i, mask=i < rows, other=0.0)
    end = tl.where(lse > float("-inf"), keys, 0)
    lse = tl.where(lse > float("-inf"), lse, 0.0)
    if HAS_END:
        end = tl.minimum(end, tl.load(END + b * rows + i, mask=i < rows, other=0))
    hi = tl.max(end, 0)
    K += b * skb + key_head * skh
    V += b * svb + key_head * svh
    n = tl.arange(0, BN)
    dq = tl.zeros([BM, DP], tl.float32)
    for s in tl.range(0, hi, BN):
        k = load_rows(K, s, hi, skn, BN, D, DP, True)
        v = load_rows(V, s, hi, svn, BN, D, DP, True)
        logit = dot(q, tl.trans(k), PRECISION, UPCAST) * (scale * LOG2E) - lse[:, None]
        if HAS_SIZE:
            logit += (tl.load(SIZE + b * keys + s + n, mask=s + n < hi, other=0.0) * LOG2E)[None, :]
        weight = tl.where((s + n)[None, :] < end[:, None], tl.exp2(logit), 0.0)
        ds = weight * (dot(grad, tl.trans(v), PRECISION, UPCAST) - delta[:, None])
        dq += dot(ds.to(k.dtype), k, PRECISION, UPCAST)
    store_rows(DQ + b * gqb + head * gqh, dq * scale, first, rows, gqn, BM, D, DP)


def backward(
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
    """Gradients of q, k, v and log_size ``[B, N_k]``: three launches, the same bits on every run."""
    q, k, v, grad_out = (unit_stride(x) for x in (q, k, v, grad_out))
    (batch, heads, rows, _), (key_heads, keys) = q.shape, k.shape[1:3]
    dq, dk, dv = like_heads(q), like_heads(k), like_heads(v)
    dsize = q.new_empty(batch, key_heads, keys, dtype=torch.float32)
    shape, delta = shape_of(q), torch.empty_like(lse)
    delta_kernel[(triton.cdiv(rows, DELTA), heads, batch)](
        out, grad_out, dense(grad_lse, q, torch.float32), delta, *out.stride()[:3], *grad_out.stride()[:3], rows,
        D=shape["D"], DP=shape["DP"], BM=DELTA, num_warps=4, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    size, stop = dense(log_size, q, torch.float32), dense(end, q, torch.int32)
    flags = dict(HAS_SIZE=log_size is not None, HAS_END=end is not None, enable_fp_fusion=True, **shape)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *grad_out.stride()[:3])
    bm, bn, warps, stages = tiles(KEYS, q)
    first = q if end is None else first_rows(stop, bn, keys)
    keys_kernel[(triton.cdiv(keys, bn), key_heads, batch)](
        q, k, v, size, stop, lse, delta, grad_out, first, dk, dv, dsize, scale,
        *strides, *dk.stride()[:3], *dv.stride()[:3], heads // key_heads, rows, keys,
        BM=bm, BN=bn, num_warps=warps, num_stages=stages, **flags,
    )  # fmt: skip
    bm, bn, warps, stages = tiles(ROWS, q)
    rows_kernel[(triton.cdiv(rows, bm), heads, batch)](
        q, k, v, size, stop, lse, delta, grad_out, dq, scale,
        *strides, *dq.stride()[:3], heads // key_heads, rows, keys,
        BM=bm, BN=bn, num_warps=warps, num_stages=stages, **flags,
    )  # fmt: skip
    return dq, dk, dv, dsize.sum(1)


def first_rows(end: Tensor, tile: int, keys: int) -> Tensor:
    """``[B, key tiles]`` int32: the first row that sees any key of each tile (rows = none), in any order of end."""
    starts = torch.arange(0, keys, tile, device=end.device, dtype=end.dtype).expand(end.shape[0], -1).contiguous()
    return torch.searchsorted(end.cummax(1).values, starts, right=True).int()


def aot_cases(chip: int) -> list[dict]:
    """What ``scripts/check_kernels.py`` compiles ahead of time for ``chip``."""
    cases = [
        aot_case(kernel, dtype, width, pick(table, chip, dtype, width))
        for kernel, table in ((keys_kernel, KEYS), (rows_kernel, ROWS))
        for dtype, width in TYPES
    ]
    return cases + [aot_case(delta_kernel, t, width, (DELTA, 0, 4, 1), pipelined=False) for t, width in TYPES]
