"""Greedy choices of diverse tokens, each depending on those before. With cosines ``c_ij`` and a quality ``r_j`` (1):

maxmin    argmax_j  min over chosen m of (1 - c_jm);  first the token farthest from its nearest other
dpp       argmax_j  det L[chosen + j] / det L[chosen],  L_ij = r_i c_ij r_j:  what the chosen leave unexplained of j
coverage  argmax_j  r_j * sum_i max(0, c_ij - cover_i),  cover_i = max(0, c_im over chosen m)

Coverage counts cosines in whole 2^-30ths, so that its sums are exact whatever their order.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.kernels.dispatch import device_of, use_triton
from vtc.kernels.float64 import in_float64
from vtc.kernels.match import BLOCK, match, unit

KINDS = ("maxmin", "dpp", "coverage")
LIMIT = 4096  # tokens up to which cosines are held as a matrix (64 MiB) and the kernel runs
LEAST = 1e-3  # of a token's own variance: what is left below counts as nothing, as rounding adds up over the choices
ROWS = 16  # in a product, at least: of fewer, BLAS adds up otherwise than of many, and the last bits differ
GRID = 2.0**30  # in one cosine; float64 adds up 2^22 of them without rounding


@torch.no_grad()
def greedy_diverse(x: Tensor, keep: int, kind: str, allowed: Tensor, quality: Tensor | None = None) -> Tensor:
    """``[I, keep]`` int64: the tokens of each picture in the order they are chosen, -1 where none is left.

    x ``[I, N, d]``; allowed ``[I, N]`` bool; quality ``[I, N]``, not negative, for dpp and coverage. No token is chosen
    twice, ties go to the lower index, tokens with a NaN (in x or in their quality) come last.
    """
    if kind not in KINDS:
        raise ValueError(f"greedy_diverse: kind={kind!r} is not one of {', '.join(KINDS)}")
    if kind == "maxmin" and quality is not None:
        raise ValueError("greedy_diverse: maxmin takes no quality; leave it out, or use dpp or coverage")
    if keep < 0 or keep > x.shape[1]:
        raise ValueError(f"greedy_diverse: keep={keep} of {x.shape[1]} tokens; give 0 to {x.shape[1]}")
    return _greedy(x, allowed, quality, keep, kind)


@torch.library.custom_op("vtc::greedy_diverse", mutates_args=())
def _greedy(x: Tensor, allowed: Tensor, quality: Tensor | None, keep: int, kind: str) -> Tensor:
    direction = unit(x.contiguous())
    rank = torch.ones_like(direction[..., 0]) if quality is None else quality.to(direction.dtype)
    sound = direction.isfinite().all(2) & rank.isfinite()
    fused = use_triton(x) and x.shape[1] <= LIMIT
    if kind == "maxmin":
        return _maxmin(direction, allowed, sound, keep, fused)
    direction, rank = _columns(direction.where(sound[..., None], 0)), rank.where(sound & allowed, 0)
    if kind == "dpp":
        return _dpp(direction, allowed, sound, rank, keep, fused)
    return in_float64(partial(_coverage, keep=keep, fused=fused), direction, allowed, sound, rank)


@_greedy.register_fake
def _(x, allowed, quality, keep, kind):
    return x.new_empty(x.shape[0], keep, dtype=torch.int64)


def _maxmin(direction: Tensor, allowed: Tensor, sound: Tensor, keep: int, fused: bool) -> Tensor:
    nearest, cosine = match(direction, direction, allowed, skip_self=True)
    first = _open(1 - _mutual(nearest, cosine), allowed, sound)  # alone in its picture: +inf
    away = _open(torch.full_like(first, torch.inf), allowed, sound)
    direction = _columns(direction)
    if fused:
        from vtc.kernels import greedy_diverse_triton as launch

        with device_of(direction):
            return launch.maxmin(direction @ direction.mT, first, away, keep)
    order = []
    for step in range(keep):
        order.append(chosen := _best(first if step == 0 else away))
        there = chosen.clamp(min=0)
        row = direction.gather(1, there[..., None].expand(-1, -1, direction.shape[2]))
        away = torch.fmin(away, 1 - (direction @ row.mT)[..., 0]).scatter_(1, there, -torch.inf)
    return _joined(order, direction)


def _mutual(nearest: Tensor, cosine: Tensor) -> Tensor:
    """``cosine [I, N]`` with one number for both of a pair that are each other's ``nearest [I, N]``: a product's last
    bits depend on where it is computed, and would break their tie differently in every batch."""
    other = nearest.clamp(min=0)
    pair = (nearest.gather(1, other) == torch.arange(nearest.shape[1], device=nearest.device)) & (nearest >= 0)
    return torch.where(pair, torch.maximum(cosine, cosine.gather(1, other)), cosine)


def _dpp(direction: Tensor, allowed: Tensor, sound: Tensor, rank: Tensor, keep: int, fused: bool) -> Tensor:
    """Incremental Cholesky (Chen, Zhang and Zhou, arXiv 1709.05135): row t of ``steps`` is what choice t explains.
    Departs from the paper: where nothing is left to explain it stops, and here the other tokens follow by index."""
    scaled = direction * rank[..., None]
    own = rank.square() * (direction != 0).any(2)  # a direction has length 1: no rounding decides between equals
    left = _open(own, allowed, sound)
    if fused:
        from vtc.kernels import greedy_diverse_triton as launch

        with device_of(scaled):
            return launch.dpp(scaled @ scaled.mT, left, LEAST * own, keep)
    order, steps = [], own.new_zeros(own.shape[0], keep, own.shape[1])
    for step in range(keep):
        order.append(chosen := _best(left))
        there = chosen.clamp(min=0)
        top = left.gather(1, there)
        row = (scaled @ scaled.gather(1, there[..., None].expand(-1, -1, scaled.shape[2])).mT)[..., 0]
        past = steps[:, :step]
        known = (past.gather(2, there[..., None].expand(-1, step, 1)).mT @ past)[:, 0]
        explains = ((row - known) / top.sqrt()).where(top > 0, 0)
        steps[:, step] = explains
        rest = left - explains.square()
        left = rest.where((rest >= LEAST * own) | (left <= 0), 0).scatter_(1, there, -torch.inf)
    return _joined(order, direction)


def _coverage(direction: Tensor, allowed: Tensor, sound: Tensor, rank: Tensor, keep: int, fused: bool) -> Tensor:
    """Facility location. Gains are kept, not computed again: a choice takes from them what it covers. That reads only
    cosines of tokens whose cover rises (about N at the first choice, few later). Exact sums: nothing drifts."""
    scaled = direction.mT * GRID
    held = (direction @ scaled).round_() if direction.shape[1] <= LIMIT else None

    def cosines(index: Tensor) -> Tensor:
        """``[I, R, N]``: of the tokens ``index [I, R]`` to all, in whole 2^-30ths."""
        if held is not None:
            return held.gather(1, index[..., None].expand(-1, -1, held.shape[2]))
        enough = pad(index, (0, max(0, ROWS - index.shape[1])))[..., None].expand(-1, -1, direction.shape[2])
        return (direction.gather(1, enough) @ scaled).round_()[:, : index.shape[1]]

    cover = torch.zeros_like(rank)
    gain = _between(cosines, cover, torch.where(allowed, torch.inf, cover))
    taken = _open(cover, allowed, sound)
    if held is not None and fused:
        from vtc.kernels import greedy_diverse_triton as launch

        with device_of(held):
            return launch.coverage(held, gain, rank, taken, keep)
    order = []
    for _ in range(keep):
        order.append(chosen := _best((gain * rank).where(taken == 0, taken)))
        there = chosen.clamp(min=0)
        risen = torch.maximum(cover, cosines(there)[:, 0]).where(allowed, 0)
        gain -= _between(cosines, cover, risen)
        cover, taken = risen, taken.scatter(1, there, -torch.inf)
    return _joined(order, direction)


def _between(cosines: Callable[[Tensor], Tensor], low: Tensor, high: Tensor) -> Tensor:
    """``[I, N]`` float64: how much of each token's cosine to i lies between ``low_i`` and ``high_i``, summed over i.
    Only the i with ``low_i < high_i`` are looked at, in small blocks. low, high ``[I, N]``."""
    total = torch.zeros(low.shape, dtype=torch.float64, device=low.device)
    rises = low < high
    count = int(rises.sum(1).max()) if rises.numel() else 0
    index = rises.int().topk(count, dim=1).indices  # in pictures with fewer, the rest has low = high and adds nothing
    rows = max(1, BLOCK // max(1, low.numel()))
    for start in range(0, count, rows):
        part = index[:, start : start + rows]
        floor, roof = (bound.gather(1, part)[..., None] for bound in (low, high))
        block = cosines(part)
        torch.minimum(torch.maximum(block, floor, out=block), roof, out=block)  # clamp_ is several times slower
        total += block.sum(1, dtype=torch.float64) - floor.sum(1, dtype=torch.float64)
    return total


def _columns(direction: Tensor) -> Tensor:
    """The same, stored feature by feature: products with one token then add up in one order. In the usual layout their
    last bits vary with a token's place, the padding and the number of pictures, and equal tokens do not always tie."""
    return direction.mT.contiguous().mT


def _open(score: Tensor, allowed: Tensor, sound: Tensor) -> Tensor:
    """``score`` with -2, below every score, for tokens with a NaN and -inf for tokens that are not there."""
    return score.where(sound, -2.0).where(allowed, -torch.inf)


def _best(score: Tensor) -> Tensor:
    """``[I, 1]``: the lowest index of the largest score; -1 where all are -inf."""
    top = score.max(dim=1, keepdim=True)
    return top.indices.masked_fill(top.values == -torch.inf, -1)


def _joined(order: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat(order, dim=1) if order else like.new_empty(like.shape[0], 0, dtype=torch.int64)
