"""Split-K decoding: partial softmaxes over spans of keys in float32, then their exact combination."""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtc.kernels.dispatch import power
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
)
from vtc.kernels.tile_triton import dot

# Keys of a tile, warps and stages; else as ``FORWARD``.
TILES: Table = {
    0: {64: (32, 8, 2), 128: (32, 8, 2), 256: (32, 8, 2)},
    80: {64: (64, 4, 3), 128: (64, 4, 3), 256: (32, 4, 3)},
}
SPLITS = 64  # at most
WAVES = 2  # programs a multiprocessor


@triton.jit(do_not_specialize=["keys", "span"])
def span_kernel(
    Q, K, V, SIZE, PART, TOP, scale2, sqb, sqh, skb, skh, skn, svb, svh, svn, keys, span,
    G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr,
    HAS_SIZE: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """The G query heads of a key head over ``span`` keys: keys and values are read once. Grid (splits, Hk, B).

    PART ``[B, Hk, splits, G, D]`` (a softmax of its own) and TOP ``[B, Hk, splits, G]`` (its log2-sum-exp2).
    """
    split, key_head, b = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    q = load_rows(Q + b * sqb + key_head * G * sqh, 0, G, sqh, GP, D, DP, True)
    K += b * skb + key_head * skh
    V += b * svb + key_head * svh
    n = tl.arange(0, BN)
    out, total = tl.zeros([GP, DP], tl.float32), tl.zeros([GP], tl.float32)
    top = tl.full([GP], float("-inf"), tl.float32)
    hi = tl.minimum(split * span + span, keys)
    for s in tl.range(split * span, hi, BN):
        k = load_rows(K, s, hi, skn, BN, D, DP, True)
        v = load_rows(V, s, hi, svn, BN, D, DP, True)
        logit = dot(q, tl.trans(k), PRECISION, UPCAST) * scale2
        if HAS_SIZE:
            logit += (tl.load(SIZE + b * keys + s + n, mask=s + n < hi, other=0.0) * LOG2E)[None, :]
        logit = tl.where((s + n < hi)[None, :], logit, float("-inf"))
        new = tl.maximum(top, tl.max(logit, 1))
        base = tl.where(new == float("-inf"), 0.0, new)  # nothing but holes yet
        shrink = tl.exp2(top - base)
        weight = tl.exp2(logit - base[:, None])
        total = total * shrink + tl.sum(weight, 1)
        out = out * shrink[:, None] + dot(weight.to(v.dtype), v, PRECISION, UPCAST)
        top = new
    safe = tl.where(total == 0.0, 1.0, total)
    place = ((b * tl.num_programs(1) + key_head) * tl.num_programs(0) + split) * G
    store_rows(PART + place * D, out / safe[:, None], 0, G, D, GP, D, DP)
    g = tl.arange(0, GP)
    tl.store(TOP + place + g, tl.where(total == 0.0, float("-inf"), top + tl.log2(safe)), mask=g < G)


@triton.jit
def combine_kernel(
    PART, TOP, OUT, LSE, sob, soh, splits,
    G: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, S: tl.constexpr,
):  # fmt: skip
    """out = sum over splits of 2^(top - lse2) part. Grid (G, Hk, B)."""
    g, key_head, b = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    s, d = tl.arange(0, S), tl.arange(0, DP)
    place = (b * tl.num_programs(1) + key_head) * splits * G + g
    top = tl.load(TOP + place + s * G, mask=s < splits, other=float("-inf"))
    most = tl.max(top, 0)
    most = tl.where(most == float("-inf"), 0.0, most)
    share = tl.exp2(top - most)
    total = tl.sum(share, 0)
    safe = tl.where(total == 0.0, 1.0, total)
    part = load_rows(PART + place * D, 0, splits, G * D, S, D, DP, True)
    head = key_head * G + g
    out = (tl.sum(part * share[:, None], 0) / safe).to(OUT.dtype.element_ty)
    tl.store(OUT + b * sob + head * soh + d, out, mask=d < D)
    lse = tl.where(total == 0.0, float("-inf"), (most + tl.log2(safe)) / LOG2E)
    tl.store(LSE + b * tl.num_programs(1) * G + head, lse)


def decode(q: Tensor, k: Tensor, v: Tensor, log_size: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """See ``decode_merged``: two launches."""
    q, k, v = (unit_stride(x) for x in (q, k, v))
    (batch, heads, _, width), (key_heads, keys) = q.shape, k.shape[1:3]
    group, shape = heads // key_heads, shape_of(q)
    bn, warps, stages = tiles(TILES, q)
    span, splits = divide(keys, bn, programs(q.device) // (batch * key_heads))
    part = q.new_empty(batch, key_heads, splits, group, width, dtype=torch.float32)
    top = q.new_empty(batch, key_heads, splits, group, dtype=torch.float32)
    span_kernel[(splits, key_heads, batch)](
        q, k, v, dense(log_size, q, torch.float32), part, top, scale * LOG2E.value,
        q.stride(0), q.stride(1), *k.stride()[:3], *v.stride()[:3], keys, span, G=group, GP=power(group), BN=bn,
        HAS_SIZE=log_size is not None, **shape, num_warps=warps, num_stages=stages, enable_fp_fusion=True,
    )  # fmt: skip
    out, lse = like_heads(q), q.new_empty(batch, heads, 1, dtype=torch.float32)
    combine_kernel[(group, key_heads, batch)](
        part, top, out, lse, out.stride(0), out.stride(1), splits, G=group, D=shape["D"], DP=shape["DP"],
        S=power(splits), num_warps=4, num_stages=1, enable_fp_fusion=True,
    )  # fmt: skip
    return out, lse


def divide(keys: int, tile: int, wanted: int) -> tuple[int, int]:
    """Keys of a split (whole tiles) and the number of splits, about ``wanted`` of them."""
    tiles = triton.cdiv(keys, tile)
    span = triton.cdiv(tiles, max(1, min(wanted, SPLITS, tiles))) * tile
    return span, triton.cdiv(keys, span)


@cache
def programs(device: torch.device) -> int:
    """How many programs fill the device; a handful on a CPU (the interpreter)."""
    if device.type != "cuda":
        return 8
    return WAVES * torch.cuda.get_device_properties(device).multi_processor_count


def aot_cases(chip: int) -> list[dict]:
    """What ``scripts/check_kernels.py`` compiles ahead of time for ``chip``."""
    cases = []
    for dtype, width in TYPES:
        bn, warps, stages = pick(TILES, chip, dtype, width)
        for group in (7, 1) if width == 128 else (4,):
            case = aot_case(span_kernel, dtype, width, (group, bn, warps, stages))
            case["constexprs"] |= {"G": group, "GP": power(group)}
            cases.append(case)
    case = aot_case(combine_kernel, "bf16", 128, (7, SPLITS, 4, 1), pipelined=False)
    case["constexprs"] |= {"G": 7, "S": SPLITS}
    return [*cases, case]
