"""Greedy choices of diverse tokens, each depending on those before. With cosines ``c_ij`` and a quality ``r_j`` (1):

maxmin    argmax_j  min over chosen m of (1 - c_jm);  first the token farthest from its nearest other
dpp       argmax_j  det L[chosen + j] / det L[chosen],  L_ij = r_i c_ij r_j:  what the chosen leave unexplained of j
coverage  argmax_j  r_j * sum_i max(0, c_ij - cover_i),  cover_i = max(0, c_im over chosen m)
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.kernels.dispatch import device_of, use_triton
from vtc.kernels.match import match, unit

KINDS = ("maxmin", "dpp", "coverage")
LIMIT = 4096  # tokens up to which cosines are held as a matrix (64 MiB) and the kernel runs
LEAST = 1e-3  # of a token's own variance: what is left below counts as nothing, as rounding adds up over the choices


@torch.no_grad()
def greedy_diverse(x: Tensor, keep: int, kind: str, allowed: Tensor, quality: Tensor | None = None) -> Tensor:
    """``[I, keep]`` int64: the tokens of each picture in the order they are chosen, -1 where none is left.

    x ``[I, N, d]``; allowed ``[I, N]`` bool; quality ``[I, N]``, not negative, for dpp and coverage. No token is chosen
    twice, ties go to the lower index, tokens with a NaN come last.
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
    direction = unit(x)
    sound = direction.isfinite().all(2)
    fused = use_triton(x) and kind != "coverage" and x.shape[1] <= LIMIT
    if kind == "maxmin":
        return _maxmin(direction, allowed, sound, keep, fused)
    rank = torch.ones_like(direction[..., 0]) if quality is None else quality.to(direction.dtype)
    direction, rank = direction.where(sound[..., None], 0), rank.where(sound & allowed, 0)
    return (_dpp if kind == "dpp" else _coverage)(direction, allowed, sound, rank, keep, fused)


@_greedy.register_fake
def _(x, allowed, quality, keep, kind):
    return x.new_empty(x.shape[0], keep, dtype=torch.int64)


def _maxmin(direction: Tensor, allowed: Tensor, sound: Tensor, keep: int, fused: bool) -> Tensor:
    _, cosine = match(direction, direction, allowed, skip_self=True)
    first = _open(1 - cosine, allowed, sound)  # alone in its picture: +inf
    away = _open(torch.full_like(first, torch.inf), allowed, sound)
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


def _dpp(direction: Tensor, allowed: Tensor, sound: Tensor, rank: Tensor, keep: int, fused: bool) -> Tensor:
    """Incremental Cholesky (Chen, Zhang and Zhou, arXiv 1709.05135): row t of ``steps`` is what choice t explains."""
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
        known = (past * past.gather(2, there[..., None].expand(-1, step, 1))).sum(1)
        explains = ((row - known) / top.sqrt()).where(top > 0, 0)
        steps[:, step] = explains
        rest = left - explains.square()
        left = rest.where((rest >= LEAST * own) | (left <= 0), 0).scatter_(1, there, -torch.inf)
    return _joined(order, direction)


def _coverage(direction: Tensor, allowed: Tensor, sound: Tensor, rank: Tensor, keep: int, fused: bool) -> Tensor:
    """Every step looks at all cosines: held when there are few tokens, else computed again a block at a time."""
    tokens = direction.shape[1]
    rows = max(1, LIMIT * LIMIT // max(1, tokens) // 16)
    held = direction @ direction.mT if tokens <= LIMIT else None
    cover, order = torch.zeros_like(rank), []
    taken = _open(torch.zeros_like(rank), allowed, sound)
    for _ in range(keep):
        gain = torch.zeros_like(rank)
        for start in range(0, tokens, rows):
            part = slice(start, start + rows)
            cosine = held[:, part] if held is not None else direction[:, part] @ direction.mT
            gain += (cosine - cover[:, part, None]).clamp_(min=0).masked_fill_(~allowed[:, part, None], 0).sum(1)
        order.append(chosen := _best((gain * rank).where(taken == 0, taken)))
        there = chosen.clamp(min=0)
        row = direction.gather(1, there[..., None].expand(-1, -1, direction.shape[2]))
        cover = torch.maximum(cover, (direction @ row.mT)[..., 0])
        taken = taken.scatter(1, there, -torch.inf)
    return _joined(order, direction)


def _open(score: Tensor, allowed: Tensor, sound: Tensor) -> Tensor:
    """``score`` with -2, below every score, for tokens with a NaN and -inf for tokens that are not there."""
    return score.where(sound, -2.0).where(allowed, -torch.inf)


def _best(score: Tensor) -> Tensor:
    """``[I, 1]``: the lowest index of the largest score; -1 where all are -inf."""
    top = score.max(dim=1, keepdim=True)
    return top.indices.masked_fill(top.values == -torch.inf, -1)


def _joined(order: list[Tensor], like: Tensor) -> Tensor:
    return torch.cat(order, dim=1) if order else like.new_empty(like.shape[0], 0, dtype=torch.int64)
