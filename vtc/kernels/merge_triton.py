"""The merge as a sorted segment sum: tokens sorted by slot (stable), one program a slot and block of features.

A slot of more than CHUNK tokens is summed by several programs and their sums are added in order: no atomics, the same
bits on every run, and no program with thousands of tokens.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtc.kernels.dispatch import arch, config, power

# architecture -> (features in a tile, warps)
TILE = {80: (1024, 4)}
CHUNK = 64  # tokens of a slot that one program sums
SIZES = 256  # sizes added at a time


@triton.jit(do_not_specialize=["N", "K"])
def segment_sum(
    X, WEIGHT, ORDER, START, OWNER, FIRST, OUT, PART, SHARE, sxi, sxn, N, K, D: tl.constexpr, BC: tl.constexpr,
    BS: tl.constexpr, LONG: tl.constexpr, MEAN: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """One slot a program; with SPLIT the LONG tokens of slot ``OWNER[p]`` that program p sums, p from ``FIRST[slot]``.

    ORDER ``[I, N]`` tokens by slot, START ``[I, K + 1]`` where each slot begins in it.
    """
    p, block, i = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    c = block * BC + tl.arange(0, BC)
    slot = p
    if SPLIT:
        slot = tl.load(OWNER + i * tl.num_programs(0) + p)  # K: nothing to do
    real = slot < K
    begin = tl.load(START + i * (K + 1) + slot, mask=real, other=0)
    stop = tl.load(START + i * (K + 1) + slot + 1, mask=real, other=0)
    whole = tl.zeros([BS], tl.float32)
    if MEAN:
        for n in tl.range(begin, stop, BS):
            m = n + tl.arange(0, BS)
            token = tl.load(ORDER + i * N + m, mask=m < stop, other=0)
            whole += tl.load(WEIGHT + i * N + token, mask=m < stop, other=0.0)
    total = tl.sum(whole, 0)
    low, high = begin, stop
    direct = tl.where(real, D, 0)  # features that go straight to OUT; the rest goes by PART
    if SPLIT:
        low = begin + (p - tl.load(FIRST + i * (K + 1) + slot, mask=real, other=0)) * LONG
        high = tl.minimum(low + LONG, stop)
        direct = tl.where(stop - begin <= LONG, direct, 0)
    acc = tl.full([BC], -0.0, tl.float32)  # -0.0 + x is x for every x
    for n in tl.range(low, high):
        token = tl.load(ORDER + i * N + n).to(tl.int64)
        share = tl.load(WEIGHT + i * N + token)
        if MEAN:
            share = share / total
        tl.store(SHARE + i * N + token, share, mask=block == 0)
        acc += tl.load(X + i * sxi + token * sxn + c, mask=c < D, other=0.0).to(tl.float32) * share
    tl.store(OUT + (i * K + slot) * D + c, acc.to(OUT.dtype.element_ty), mask=c < direct)
    if SPLIT:
        tl.store(PART + (i * tl.num_programs(0) + p) * D + c, acc, mask=(c < D) & (c >= direct))


@triton.jit(do_not_specialize=["K", "P"])
def add_parts(PART, FIRST, OUT, K, P, D: tl.constexpr, BC: tl.constexpr):
    """The slots of several programs: their sums added in order."""
    slot, i = tl.program_id(0), tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    low = tl.load(FIRST + i * (K + 1) + slot)
    high = tl.load(FIRST + i * (K + 1) + slot + 1)
    wide = tl.where(high - low > 1, D, 0)
    acc = tl.full([BC], -0.0, tl.float32)
    for p in tl.range(low, tl.where(wide > 0, high, low)):
        acc += tl.load(PART + (i * P + p) * D + c, mask=c < D, other=0.0)
    tl.store(OUT + (i * K + slot) * D + c, acc.to(OUT.dtype.element_ty), mask=c < wide)


@triton.jit(do_not_specialize=["N", "K"])
def merge_gradient(
    GRAD, X, SLOT, SHARE, DX, DSHARE, sgi, sgk, sxi, sxn, N, K, D: tl.constexpr, BC: tl.constexpr
):  # fmt: skip
    """One token a program: the gradient of its features and of its share."""
    n, i = tl.program_id(0), tl.program_id(1).to(tl.int64)
    slot = tl.load(SLOT + i * N + n).to(tl.int64)
    share = tl.load(SHARE + i * N + n)
    wide = tl.where(slot >= 0, D, 0)  # nothing is read for a dropped token
    total = tl.zeros([BC], tl.float32)
    for start in range(0, D, BC):
        c = start + tl.arange(0, BC)
        own = tl.load(GRAD + i * sgi + slot * sgk + c, mask=c < wide, other=0.0).to(tl.float32)
        x = tl.load(X + i * sxi + n.to(tl.int64) * sxn + c, mask=c < wide, other=0.0).to(tl.float32)
        total += own * x
        tl.store(DX + (i * N + n) * D + c, (own * tl.where(slot >= 0, share, 0.0)).to(DX.dtype.element_ty), mask=c < D)
    tl.store(DSHARE + i * N + n, tl.sum(total, 0))


def segments(slot: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """The tokens sorted by slot, in order within one ``[I, N]``, and where each slot begins ``[I, K + 1]``, int32."""
    by_slot, order = slot.where(slot >= 0, slots).sort(dim=1, stable=True)
    every = torch.arange(slots + 1, device=slot.device, dtype=by_slot.dtype).expand(slot.shape[0], -1).contiguous()
    return order.int(), torch.searchsorted(by_slot, every).int()


def merge(features: Tensor, slot: Tensor, weight: Tensor, slots: int, mean: bool) -> tuple[Tensor, Tensor]:
    """``[I, K, D]`` and the shares ``[I, N]``, as ``vtc.kernels.merge.reference`` gives them."""
    features = features if features.stride(-1) == 1 else features.contiguous()
    pictures, tokens, width = features.shape
    out, share = features.new_empty(pictures, slots, width), torch.zeros(pictures, tokens, device=features.device)
    if not out.numel():
        return out, share
    order, start = segments(slot, slots)
    split = tokens > CHUNK
    programs = slots + tokens // CHUNK if split else slots
    owner = first = start
    if split:
        chunks = (start.diff(dim=1) + CHUNK - 1).div(CHUNK, rounding_mode="floor").clamp(min=1)
        first = torch.nn.functional.pad(chunks.cumsum(1), (1, 0))
        every = torch.arange(programs, device=slot.device).expand(pictures, -1).contiguous()
        owner, first = torch.searchsorted(first[:, 1:].contiguous(), every, right=True).int(), first.int()
    part = torch.empty(pictures, programs, width, device=features.device) if split else share
    most, warps = config(TILE, arch(features))
    block = min(most, power(width))
    blocks = triton.cdiv(width, block)
    segment_sum[(programs, blocks, pictures)](
        features, weight.float().contiguous(), order, start, owner, first, out, part, share, *features.stride()[:2],
        tokens, slots, D=width, BC=block, BS=SIZES, LONG=CHUNK, MEAN=mean, SPLIT=split, num_warps=warps,
        enable_fp_fusion=True,
    )  # fmt: skip
    if split:
        add_parts[(slots, blocks, pictures)](
            part, first, out, slots, programs, D=width, BC=block, num_warps=warps, enable_fp_fusion=True
        )
    return out, share


def backward(grad: Tensor, features: Tensor, slot: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients ``[I, N, D]`` and ``[I, N]``, as ``vtc.kernels.merge.reference_backward`` gives them."""
    grad, features = (t if t.stride(-1) == 1 else t.contiguous() for t in (grad, features))
    pictures, tokens, width = features.shape
    by_features = torch.empty(pictures, tokens, width, dtype=features.dtype, device=features.device)
    by_share = torch.empty(pictures, tokens, device=features.device)
    if not by_features.numel() or not grad.shape[1]:
        return by_features.zero_(), by_share.zero_()
    most, warps = config(TILE, arch(features))
    merge_gradient[(tokens, pictures)](
        grad, features, slot.int().contiguous(), share.contiguous(), by_features, by_share, *grad.stride()[:2],
        *features.stride()[:2], tokens, grad.shape[1], D=width, BC=min(most, power(width)), num_warps=warps,
        enable_fp_fusion=True,
    )  # fmt: skip
    return by_features, by_share


def aot_cases(chip: int) -> list[dict]:
    """What to compile ahead of time for ``chip`` (80, 90)."""
    strides = ("sgi", "sgk", "sxi", "sxn")
    most, warps = config(TILE, chip)
    cases = []
    for kernel, width, dtype in (
        (segment_sum, 1024, "bf16"), (segment_sum, 3584, "bf16"), (segment_sum, 4096, "fp32"),
        (add_parts, 4096, "bf16"), (merge_gradient, 1024, "bf16"), (merge_gradient, 3584, "bf16"),
    ):  # fmt: skip
        fixed = {"D": width, "BC": min(most, power(width)), "BS": SIZES, "LONG": CHUNK, "MEAN": True, "SPLIT": True}
        fixed = {name: value for name, value in fixed.items() if name in kernel.arg_names}
        types = dict.fromkeys(("X", "OUT", "GRAD", "DX"), f"*{dtype}")
        types |= dict.fromkeys(("WEIGHT", "PART", "SHARE", "DSHARE"), "*fp32")
        types |= dict.fromkeys(("ORDER", "START", "OWNER", "FIRST", "SLOT"), "*i32")
        types |= dict.fromkeys((*strides, "N", "K", "P"), "i32")
        cases.append(
            dict(
                name=f"{kernel.__name__} {dtype} D{width}",
                kernel=kernel,
                signature={a: types[a] for a in kernel.arg_names if a not in fixed},
                constexprs=fixed,
                options=dict(num_warps=warps, num_stages=2),
                aligned=[a for a in strides if a in kernel.arg_names],
                pipelined=False,
            )
        )
    return cases
