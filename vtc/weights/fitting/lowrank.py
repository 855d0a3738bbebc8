"""The mathematics of a low rank ``U V`` in place of ``W [O, D]``: plain, scaled and whitened. Pure functions."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.errors import WeightsError
from vtc.weights.fitting.gram import Gram


def rank_for(out: int, width: int, rank: int | None, keep: float | None) -> int:
    """The rank asked for, or the largest whose factors hold ``keep`` of the weights: ``floor(O D keep / (O + D))``.

    Raises ``WeightsError`` when it is not between 1 and min(O, D).
    """
    most = min(out, width)
    if keep is not None:
        rank = int(out * width * keep / (out + width))
        if rank < 1:
            least = (out + width) / (out * width)
            raise WeightsError(
                f"keep={keep} leaves no rank to a layer of {out} x {width}; the least is {least:.4g}, or skip it"
            )
    if rank is None or not 1 <= rank <= most:
        raise WeightsError(f"rank {rank} is not between 1 and {most}, the bounds of a layer of {out} x {width}")
    return rank


def root(moment: Tensor) -> Tensor:
    """``L [D, D]`` float64 with L LT = moment, also where that is singular (dead or repeated inputs)."""
    h = moment.double()
    factor, failed = torch.linalg.cholesky_ex(h)
    if not int(failed):
        return factor
    values, vectors = torch.linalg.eigh(h)
    return vectors * values.clamp_min(0).sqrt()


def truncated(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``(u [O, R], v [R, D])`` float64: the nearest matrix of that rank, singular values shared out between both."""
    u, s, v = torch.linalg.svd(weight.double(), full_matrices=False)
    half = s[:rank].sqrt()
    return u[:, :rank] * half, half[:, None] * v[:rank]


def scaled(weight: Tensor, scale: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``(u, v)`` with ``U V diag(scale)`` nearest to ``W diag(scale)``; scale ``[D]`` > 0 (ASVD, arXiv 2312.05821)."""
    scale = scale.double()
    u, v = truncated(weight.double() * scale, rank)
    return u, v / scale


def whitened(weight: Tensor, moment: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """``(u, v)`` with the least output error ``||(W - U V) L||``, L LT = moment (SVD-LLM, arXiv 2403.07378).

    With W L = P S QT the answer ``P_r S_r Q_rT L^-1`` is ``P_r (P_rT W)``: nothing is inverted, so a singular moment is
    as good as any, and u is orthonormal.
    """
    weight = weight.double()
    left = torch.linalg.svd(weight @ root(moment), full_matrices=False)[0][:, :rank]
    return left, left.T @ weight


def refit(v: Tensor, perturbed: Tensor, wanted: Tensor) -> Tensor:
    """``u [O, R]``, float64, with the least ``||X' VT UT - Y||``: SVD-LLM's closed-form update.

    v ``[R, D]``; perturbed X' ``[T, D]``: the inputs behind compressed layers; wanted Y ``[T, O]``: the outputs of the
    whole weight on the inputs of the model as it was.
    """
    return torch.linalg.lstsq(perturbed.double() @ v.double().T, wanted.double(), driver="gelsd").solution.T


def spectrum(weight: Tensor, gram: Gram) -> Tensor:
    """``[min(O, D)]`` float64, descending: the singular values of W L. What a rank leaves out of their squares is its
    output error, exactly."""
    return torch.linalg.svdvals(weight.double() @ root(gram.moment))


def rank_curve(weight: Tensor, gram: Gram) -> Tensor:
    """``[min(O, D) + 1]`` float64: the least squared output error, relative to the squared output, at rank 0, 1, ...
    It is what ``whitened`` reaches, known for every rank from one factorisation."""
    energy = spectrum(weight, gram) ** 2
    left = torch.cat([energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)])
    return left / left[0] if left[0] > 0 else left
