"""The best match with the cosines on chip only: running max and argmax over the tiles of the targets."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtc.kernels.dispatch import arch, config, interpreted, power, precision
from vtc.kernels.tile_triton import dot

# architecture -> (rows in a tile, targets in a tile, widest block of features, warps, stages)
TILE = {80: (64, 64, 64, 4, 3), 90: (64, 64, 128, 4, 3)}
TILE32 = {80: (32, 32, 32, 4, 3)}  # float32
PROGRAMS = 264  # enough to fill the largest GPU twice


@triton.jit(do_not_specialize=["N", "K", "PER"])
def best_match(
    A, B, ALLOWED, VALUE, INDEX, sai, san, sbi, sbk, N, K, PER, D: tl.constexpr, BC: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, SKIP: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """``VALUE, INDEX [splits, I, N]``: the best of this split's PER targets, the lowest of equals."""
    split, i = tl.program_id(1), tl.program_id(2).to(tl.int64)
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    n, d = tl.arange(0, BN), tl.arange(0, BC)
    best = tl.full([BM], float("-inf"), tl.float32)
    index = tl.full([BM], -1, tl.int32)
    length = tl.zeros([BM], tl.float32)
    low = split * PER
    high = tl.minimum(low + PER, K)
    for start in tl.range(low, high, BN):
        j = start + n
        x = tl.zeros([BM, BN], tl.float32)
        squares = tl.zeros([BN], tl.float32)
        length = tl.zeros([BM], tl.float32)
        for first in range(0, D, BC):
            c = first + d
            rows = A + i * sai + r[:, None].to(tl.int64) * san + c[None, :]
            columns = B + i * sbi + j[None, :].to(tl.int64) * sbk + c[:, None]
            a = tl.load(rows, mask=(r < N)[:, None] & (c[None, :] < D), other=0.0)
            b = tl.load(columns, mask=(j < high)[None, :] & (c[:, None] < D), other=0.0)
            x += dot(a, b, PRECISION, UPCAST)
            wide_a, wide_b = a.to(tl.float32), b.to(tl.float32)
            length += tl.sum(wide_a * wide_a, 1)
            squares += tl.sum(wide_b * wide_b, 0)
        x = x / tl.maximum(tl.sqrt(squares), 1e-12)[None, :]
        fit = tl.load(ALLOWED + i * K + j, mask=j < high, other=0)[None, :] != 0
        fit = fit & (x == x)
        if SKIP:
            fit = fit & (r[:, None] != j[None, :])
        x = tl.where(fit, x, float("-inf"))
        top, place = tl.max(x, 1, return_indices=True, return_indices_tie_break_left=True)
        index = tl.where(top > best, start + place, index)
        best = tl.maximum(best, top)
    cosine = best / tl.maximum(tl.sqrt(length), 1e-12)
    sound = (length == length) & (length != float("inf")) & (index >= 0)
    line = (split.to(tl.int64) * tl.num_programs(2) + i) * N
    tl.store(VALUE + line + r, tl.where(sound, cosine, float("-inf")), mask=r < N)
    tl.store(INDEX + line + r, tl.where(sound, index, -1), mask=r < N)


def match(a: Tensor, b: Tensor, allowed: Tensor, skip_self: bool) -> tuple[Tensor, Tensor]:
    """Index and cosine ``[I, N]``, as ``vtc.kernels.match.reference`` gives them."""
    if a.dtype != b.dtype:
        a, b = a.float(), b.float()
    a, b = (t if t.stride(-1) == 1 else t.contiguous() for t in (a, b))
    (pictures, rows, width), targets = a.shape, b.shape[1]
    bm, bn, widest, warps, stages = config(TILE32 if a.dtype == torch.float32 else TILE, arch(a))
    tiles = triton.cdiv(rows, bm)
    splits = max(1, min(triton.cdiv(targets, 4 * bn), PROGRAMS // max(1, tiles * pictures)))
    per = triton.cdiv(triton.cdiv(targets, splits), bn) * bn
    splits = triton.cdiv(targets, max(1, per))
    value = torch.full((max(1, splits), pictures, rows), -torch.inf, device=a.device)
    index = torch.full(value.shape, -1, dtype=torch.int32, device=a.device)
    if value.numel() and targets:
        best_match[(tiles, splits, pictures)](
            a, b, allowed.to(torch.int8).contiguous(), value, index, *a.stride()[:2], *b.stride()[:2], rows, targets,
            per, D=width, BC=min(widest, power(width)), BM=bm, BN=bn, SKIP=skip_self, PRECISION=precision(a),
            UPCAST=interpreted(), num_warps=warps, num_stages=stages, enable_fp_fusion=True,
        )  # fmt: skip
    best = value.max(0)  # the first of equals: the lowest split
    return index.gather(0, best.indices[None])[0].long(), best.values


def aot_cases(chip: int) -> list[dict]:
    """What to compile ahead of time for ``chip`` (80, 90)."""
    integers = ("sai", "san", "sbi", "sbk", "N", "K", "PER")
    cases = []
    for width, dtype in ((64, "bf16"), (128, "bf16"), (1280, "bf16"), (3584, "bf16"), (1024, "fp16"), (4096, "fp32")):
        bm, bn, widest, warps, stages = config(TILE32 if dtype == "fp32" else TILE, chip)
        fixed: dict = dict(D=width, BC=min(widest, power(width)), BM=bm, BN=bn, SKIP=True, UPCAST=False)
        fixed |= {"PRECISION": "tf32x3" if dtype == "fp32" else "ieee"}
        types = {"A": f"*{dtype}", "B": f"*{dtype}", "ALLOWED": "*i8", "VALUE": "*fp32", "INDEX": "*i32"}
        types |= dict.fromkeys(integers, "i32")
        cases.append(
            dict(
                name=f"best_match {dtype} D{width}",
                kernel=best_match,
                signature={a: types[a] for a in best_match.arg_names if a not in fixed},
                constexprs=fixed,
                options=dict(num_warps=warps, num_stages=stages),
                aligned=integers[:4],
            )
        )
    return cases
