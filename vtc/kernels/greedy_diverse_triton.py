"""Sequential choices in one launch: one program a picture, which holds the scores of all its tokens on chip."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vtc.kernels.dispatch import arch, config, power

# architecture -> (warps, and warps for more than 1,024 tokens)
WARPS = {80: (4, 8)}


@triton.jit(do_not_specialize=["KEEP"])
def maxmin_picks(GRAM, FIRST, AWAY, ORDER, N, KEEP, NP: tl.constexpr):
    """``ORDER [I, KEEP]`` from cosines ``GRAM [I, N, N]``, first scores and later scores ``[I, N]``."""
    i = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, NP)
    score = tl.load(FIRST + i * N + j, mask=j < N, other=float("-inf"))
    away = tl.load(AWAY + i * N + j, mask=j < N, other=float("-inf"))
    for step in tl.range(0, KEEP):
        top, chosen = tl.max(score, 0, return_indices=True, return_indices_tie_break_left=True)
        tl.store(ORDER + i * KEEP + step, tl.where(top == float("-inf"), -1, chosen))
        row = 1 - tl.load(GRAM + (i * N + chosen) * N + j, mask=j < N, other=0.0)
        away = tl.where((row < away) & (row == row), row, away)
        away = tl.where(j == chosen, float("-inf"), away)
        score = away


@triton.jit(do_not_specialize=["KEEP"])
def dpp_picks(GRAM, LEFT, LEAST, STEPS, ORDER, N, KEEP, NP: tl.constexpr):
    """``ORDER [I, KEEP]`` from ``GRAM [I, N, N]``, the variances ``LEFT`` and what counts as nothing ``LEAST [I, N]``;
    ``STEPS [I, KEEP, N]`` is scratch: what each choice explains."""
    i = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, NP)
    left = tl.load(LEFT + i * N + j, mask=j < N, other=float("-inf"))
    least = tl.load(LEAST + i * N + j, mask=j < N, other=0.0)
    for step in tl.range(0, KEEP):
        top, chosen = tl.max(left, 0, return_indices=True, return_indices_tie_break_left=True)
        tl.store(ORDER + i * KEEP + step, tl.where(top == float("-inf"), -1, chosen))
        known = tl.zeros([NP], tl.float32)
        for past in tl.range(0, step):
            line = STEPS + (i * KEEP + past) * N
            known += tl.load(line + j, mask=j < N, other=0.0) * tl.load(line + chosen)
        row = tl.load(GRAM + (i * N + chosen) * N + j, mask=j < N, other=0.0)
        explains = tl.where(top > 0, (row - known) / tl.sqrt(tl.where(top > 0, top, 1.0)), 0.0)
        tl.store(STEPS + (i * KEEP + step) * N + j, explains, mask=j < N)
        tl.debug_barrier()  # the next step reads it from other threads
        rest = left - explains * explains
        left = tl.where((rest >= least) | (left <= 0), rest, 0.0)
        left = tl.where(j == chosen, float("-inf"), left)


@triton.jit(do_not_specialize=["KEEP"])
def coverage_picks(GRAM, GAIN, RANK, TAKEN, RISEN, LOW, HIGH, ORDER, N, KEEP, NP: tl.constexpr):
    """``ORDER [I, KEEP]`` from cosines in whole 2^-30ths ``GRAM [I, N, N]``, first gains, quality and ``TAKEN [I, N]``
    (0 = open, else the score in its place). ``RISEN, LOW, HIGH [I, N]`` are scratch: the tokens whose cover rises, from
    where to where. Sums of whole numbers: float64 does not round them, so their order does not matter."""
    i = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, NP)
    gain = tl.load(GAIN + i * N + j, mask=j < N, other=0.0)
    taken = tl.load(TAKEN + i * N + j, mask=j < N, other=float("-inf"))
    there = taken > float("-inf")
    cover = tl.zeros([NP], tl.float32)
    for step in tl.range(0, KEEP):
        rank = tl.load(RANK + i * N + j, mask=j < N, other=0.0)
        score = tl.where(taken == 0, gain * rank.to(tl.float64), taken.to(tl.float64))
        top = tl.max(score, 0)
        chosen = tl.min(tl.where(score == top, j, NP), 0)  # the lowest; max with indices takes many more registers here
        tl.store(ORDER + i * KEEP + step, tl.where(top == float("-inf"), -1, chosen))
        taken = tl.where(j == chosen, float("-inf"), taken)
        row = tl.load(GRAM + (i * N + chosen) * N + j, mask=there, other=0.0)
        rises = there & (row > cover)
        place = tl.cumsum(rises.to(tl.int32), 0) - 1
        count = tl.sum(rises.to(tl.int32), 0)
        tl.store(RISEN + i * N + place, j, mask=rises)
        tl.store(LOW + i * N + place, cover, mask=rises)
        tl.store(HIGH + i * N + place, row, mask=rises)
        tl.debug_barrier()  # read below from other threads
        for k in tl.range(0, count):
            line = GRAM + (i * N + tl.load(RISEN + i * N + k)) * N
            low, high = tl.load(LOW + i * N + k), tl.load(HIGH + i * N + k)
            part = tl.minimum(tl.maximum(tl.load(line + j, mask=j < N, other=0.0), low), high)
            gain -= part.to(tl.float64) - low.to(tl.float64)
        tl.debug_barrier()  # and not written again before
        cover = tl.where(rises, row, cover)


def maxmin(gram: Tensor, first: Tensor, away: Tensor, keep: int) -> Tensor:
    """``[I, keep]`` int64 for cosines ``gram [I, N, N]`` and scores ``[I, N]``."""
    pictures, tokens = first.shape
    order = torch.full((pictures, keep), -1, dtype=torch.int64, device=gram.device)
    if order.numel():
        maxmin_picks[(pictures,)](
            gram.contiguous(), first.contiguous(), away.contiguous(), order, tokens, keep, NP=power(tokens),
            num_warps=config(WARPS, arch(gram))[tokens > 1024], enable_fp_fusion=True,
        )  # fmt: skip
    return order


def dpp(gram: Tensor, left: Tensor, least: Tensor, keep: int) -> Tensor:
    """``[I, keep]`` int64 for ``gram [I, N, N]``, the variances and their floor ``[I, N]``."""
    pictures, tokens = left.shape
    order = torch.full((pictures, keep), -1, dtype=torch.int64, device=gram.device)
    if order.numel():
        steps = torch.empty(pictures, keep, tokens, device=gram.device)
        dpp_picks[(pictures,)](
            gram.contiguous(), left.contiguous(), least.contiguous(), steps, order, tokens, keep, NP=power(tokens),
            num_warps=config(WARPS, arch(gram))[tokens > 1024], enable_fp_fusion=True,
        )  # fmt: skip
    return order


def coverage(gram: Tensor, gain: Tensor, rank: Tensor, taken: Tensor, keep: int) -> Tensor:
    """``[I, keep]`` int64 for cosines in whole 2^-30ths ``gram [I, N, N]``, first gains (float64), quality, and ``taken
    [I, N]``: 0, or the score in its place."""
    pictures, tokens = gain.shape
    order = torch.full((pictures, keep), -1, dtype=torch.int64, device=gram.device)
    if order.numel():
        risen = torch.empty(pictures, tokens, dtype=torch.int32, device=gram.device)
        low, high = torch.empty(2, pictures, tokens, device=gram.device)
        coverage_picks[(pictures,)](
            gram.contiguous(), gain.contiguous(), rank.contiguous(), taken.contiguous(), risen, low, high, order,
            tokens, keep, NP=power(tokens), num_warps=config(WARPS, arch(gram))[tokens > 1024], enable_fp_fusion=True,
        )  # fmt: skip
    return order


def aot_cases(chip: int) -> list[dict]:
    """What to compile ahead of time for ``chip`` (80, 90)."""
    cases = []
    special = {"GAIN": "*fp64", "RISEN": "*i32", "ORDER": "*i64", "N": "i32", "KEEP": "i32"}
    for kernel in (maxmin_picks, dpp_picks, coverage_picks):
        for tokens in (1024, 4096):
            types = dict.fromkeys(kernel.arg_names, "*fp32") | special
            cases.append(
                dict(
                    name=f"{kernel.__name__} N{tokens}",
                    kernel=kernel,
                    signature={a: types[a] for a in kernel.arg_names if a != "NP"},
                    constexprs={"NP": tokens},
                    options=dict(num_warps=config(WARPS, chip)[tokens > 1024], num_stages=2),
                    aligned=["N"],
                    pipelined=False,
                )
            )
    return cases
