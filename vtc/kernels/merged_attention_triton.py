"""The forward kernel of ``merged_attention``: softmax on line, keys in tiles, nothing of size N x N."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtc.kernels.dispatch import arch, config, interpreted, power
from vtc.kernels.heads import like_heads
from vtc.kernels.tile_triton import dot

LOG2E = tl.constexpr(1.4426950408889634)
Table = dict[int, dict[int, tuple[int, ...]]]
# Rows and keys of a tile, warps and stages, by architecture and width of a head (up to). None spills registers, and
# those for 80 and 120 fit the smaller chips of their kind. 0 is float32 on any chip, multiplied off the tensor cores.
FORWARD: Table = {
    0: {64: (16, 32, 8, 2), 128: (16, 16, 8, 2), 256: (16, 32, 8, 2)},
    80: {64: (64, 64, 4, 3), 128: (64, 64, 8, 3), 256: (64, 32, 8, 2)},
    90: {64: (64, 64, 4, 3), 128: (128, 64, 8, 3), 256: (64, 32, 8, 2)},
    120: {64: (64, 64, 4, 3), 128: (64, 64, 8, 3), 256: (64, 32, 8, 2)},
}


@triton.jit
def load_rows(X, first, stop, stride, N: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, EDGE: tl.constexpr):
    """Rows ``first..first + N`` of X as ``[N, DP]``; 0 beyond column D and, at an EDGE, from row ``stop`` on."""
    n, d = tl.arange(0, N), tl.arange(0, DP)
    at = X + tl.cast(first, tl.int64) * stride + (n[:, None] * stride + d[None, :])
    if EDGE:
        return tl.load(at, mask=(first + n < stop)[:, None] & (d < D)[None, :], other=0.0)
    elif D != DP:
        return tl.load(at, mask=(d < D)[None, :], other=0.0)
    else:
        return tl.load(at)


@triton.jit
def store_rows(X, value, first, stop, stride, N: tl.constexpr, D: tl.constexpr, DP: tl.constexpr):
    """The opposite of ``load_rows`` at an edge."""
    n, d = tl.arange(0, N), tl.arange(0, DP)
    at = X + tl.cast(first, tl.int64) * stride + (n[:, None] * stride + d[None, :])
    tl.store(at, value.to(X.dtype.element_ty), mask=(first + n < stop)[:, None] & (d < D)[None, :])


@triton.jit
def _attend(
    out, total, top, q, end, K, V, SIZE, lo, hi, skn, svn, scale2,
    EDGE: tl.constexpr, HAS_SIZE: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Keys lo..hi in tiles of BN, into the running sums (out, total) relative to the running maximum (top)."""
    n = tl.arange(0, BN)
    for s in tl.range(lo, hi, BN):
        k = load_rows(K, s, hi, skn, BN, D, DP, EDGE)
        logit = dot(q, tl.trans(k), PRECISION, UPCAST) * scale2
        if HAS_SIZE:
            if EDGE:
                size = tl.load(SIZE + s + n, mask=s + n < hi, other=0.0)
            else:
                size = tl.load(SIZE + s + n)
            logit += (size * LOG2E)[None, :]
        if EDGE:
            logit = tl.where((s + n)[None, :] < end[:, None], logit, float("-inf"))
        new = tl.maximum(top, tl.max(logit, 1))
        base = tl.where(new == float("-inf"), 0.0, new)  # a row that has seen nothing yet
        shrink = tl.exp2(top - base)
        weight = tl.exp2(logit - base[:, None])
        total = total * shrink + tl.sum(weight, 1)
        v = load_rows(V, s, hi, svn, BN, D, DP, EDGE)
        out = out * shrink[:, None] + dot(weight.to(v.dtype), v, PRECISION, UPCAST)
        top = new
    return out, total, top


@triton.jit(do_not_specialize=["rows", "keys"])
def forward_kernel(
    Q, K, V, SIZE, END, OUT, LSE, scale2,
    sqb, sqh, sqn, skb, skh, skn, svb, svh, svn, sob, soh, son, groups, rows, keys,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HAS_SIZE: tl.constexpr, HAS_END: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """BM rows of one head. Grid (row tiles, H, B); SIZE ``[B, keys]`` and END ``[B, rows]`` are dense."""
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BM  # causal: the rows that see most start first
    h, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    head, key_head = h.to(tl.int64), (h // groups).to(tl.int64)
    i = first + tl.arange(0, BM)
    live = i < rows
    if HAS_END:
        end = tl.maximum(tl.minimum(tl.load(END + b * rows + i, mask=live, other=0), keys), 0)
        hi = tl.max(end, 0)
        lo = tl.min(tl.where(live, end, hi), 0) // BN * BN  # whole tiles that every row sees
    else:
        end = tl.where(live, keys, 0)
        hi = keys
        lo = keys // BN * BN
    q = load_rows(Q + b * sqb + head * sqh, first, rows, sqn, BM, D, DP, True)
    K += b * skb + key_head * skh
    V += b * svb + key_head * svh
    SIZE += b * keys
    out, total = tl.zeros([BM, DP], tl.float32), tl.zeros([BM], tl.float32)
    top = tl.full([BM], float("-inf"), tl.float32)
    out, total, top = _attend(out, total, top, q, end, K, V, SIZE, 0, lo, skn, svn, scale2, False, HAS_SIZE, D, DP, BN, PRECISION, UPCAST)  # noqa: E501  # fmt: skip
    out, total, top = _attend(out, total, top, q, end, K, V, SIZE, lo, hi, skn, svn, scale2, True, HAS_SIZE, D, DP, BN, PRECISION, UPCAST)  # noqa: E501  # fmt: skip
    safe = tl.where(total == 0.0, 1.0, total)
    store_rows(OUT + b * sob + head * soh, out / safe[:, None], first, rows, son, BM, D, DP)
    lse = tl.where(total == 0.0, float("-inf"), (top + tl.log2(safe)) / LOG2E)
    tl.store(LSE + (b * tl.num_programs(1) + h) * rows + i, lse, mask=live)


def forward(
    q: Tensor, k: Tensor, v: Tensor, log_size: Tensor | None, end: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """See ``merged_attention``."""
    q, k, v = (unit_stride(x) for x in (q, k, v))
    batch, heads, rows, width = q.shape
    out, lse = like_heads(q), q.new_empty(batch, heads, rows, dtype=torch.float32)
    bm, bn, warps, stages = tiles(FORWARD, q)
    forward_kernel[(triton.cdiv(rows, bm), heads, batch)](
        q, k, v, dense(log_size, q, torch.float32), dense(end, q, torch.int32), out, lse, scale * LOG2E.value,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3], heads // k.shape[1], rows, k.shape[2],
        BM=bm, BN=bn, HAS_SIZE=log_size is not None, HAS_END=end is not None, **shape_of(q),
        num_warps=warps, num_stages=stages, enable_fp_fusion=True,
    )  # fmt: skip
    return out, lse


def tiles(table: Table, q: Tensor) -> tuple[int, ...]:
    """The launch settings for heads like q's."""
    return pick(table, arch(q), "fp32" if q.dtype == torch.float32 else "bf16", q.shape[-1])


def pick(table: Table, chip: int, dtype: str, width: int) -> tuple[int, ...]:
    """The launch settings for a chip, a dtype and heads of a width."""
    return config(table, 0 if dtype == "fp32" else chip)[power(width, 64)]


def shape_of(q: Tensor) -> dict:
    """The compile-time arguments that every kernel here takes."""
    return dict(D=q.shape[-1], DP=power(q.shape[-1]), PRECISION="ieee", UPCAST=interpreted())


def unit_stride(x: Tensor) -> Tensor:
    """x, copied where its last dimension is not contiguous (kernels step it by 1)."""
    return x if x.stride(-1) == 1 else x.contiguous()


def dense(x: Tensor | None, instead: Tensor, dtype: torch.dtype) -> Tensor:
    """x contiguous (kernels index it densely, and gradients come expanded), or a tensor that is never read."""
    return instead if x is None else x.to(dtype).contiguous()


TYPES = [
    ("bf16", 128),
    ("fp16", 128),
    *(("bf16", d) for d in (32, 64, 80, 96, 256)),
    *(("fp32", d) for d in (64, 128, 256)),
]
DATA = ("Q", "K", "V", "OUT", "DOUT", "DQ", "DK", "DV")
INTEGERS = ("END", "FIRST")


def aot_cases(chip: int) -> list[dict]:
    """What ``scripts/check_kernels.py`` compiles ahead of time for ``chip``."""
    return [
        aot_case(forward_kernel, dtype, width, pick(FORWARD, chip, dtype, width), has_end)
        for has_end in (True, False)
        for dtype, width in TYPES
    ]


def aot_case(kernel, dtype: str, width: int, tile: tuple[int, ...], has_end: bool = True, **more) -> dict:
    """One case: argument types by name, strides of rows and heads divisible by 16."""
    bm, bn, warps, stages = tile
    fixed: dict[str, object] = dict(D=width, DP=power(width), BM=bm, BN=bn, HAS_SIZE=True, HAS_END=has_end)
    fixed = {n: x for n, x in (fixed | dict(PRECISION="ieee", UPCAST=False)).items() if n in kernel.arg_names}
    types = {n: "fp32" if n.startswith("scale") else "i32" if n.islower() else "*fp32" for n in kernel.arg_names}
    types |= dict.fromkeys(DATA, f"*{dtype}") | dict.fromkeys(INTEGERS, "*i32")
    return dict(
        name=f"{kernel.__name__} {dtype} D{width} {bm}x{bn} w{warps} s{stages}{'' if has_end else ' all'}",
        kernel=kernel,
        signature={n: types[n] for n in kernel.arg_names if n not in fixed},
        constexprs=fixed,
        options=dict(num_warps=warps, num_stages=stages, enable_fp_fusion=True),
        aligned=[n for n in kernel.arg_names if len(n) == 3 and n.islower()],
        **more,
    )
