"""Which rank each low-rank layer gets under one budget, by how much information its weight holds (D-Rank, arXiv
2509.25622). Pure functions of singular values; ``vtc.weights.lowrank.spectrum`` has those that count: of W L."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.errors import WeightsError


@dataclass(frozen=True)
class Matrix:
    """A weight of ``out x width`` and the singular values ``[min(out, width)]`` of it, whitened by its inputs."""

    out: int
    width: int
    spectrum: Tensor

    @property
    def price(self) -> int:
        """Numbers stored for one rank."""
        return self.out + self.width

    @property
    def most(self) -> int:
        return min(self.out, self.width)


def effective_rank(spectrum: Tensor) -> float:
    """``exp(-sum p log p)``, p the shares of the squared singular values: 1 for one direction, n for n even ones."""
    energy = spectrum.double() ** 2
    if not bool(torch.isfinite(energy).all()) or not float(energy.sum()) > 0:
        return 0.0
    share = energy / energy.sum()
    return math.exp(float(torch.special.entr(share).sum()))


def allocate(matrices: Mapping[str, Matrix], budget: int, itemsize: int = 2) -> dict[str, int]:
    """Ranks by name with the least ``sum of R / k`` (R: effective rank, k: rank) whose factors take at most ``budget``
    bytes at ``itemsize`` bytes a number. By Lagrange k is in proportion to ``sqrt(R / price)``, from 1 to full rank.

    The paper calls it for all layers of one kind (all Q, all K, ...), each with its share of the budget. Raises
    ``WeightsError`` when the budget is less than rank 1 everywhere takes.
    """
    left = budget / itemsize
    least = sum(m.price for m in matrices.values())
    if left < least:
        raise WeightsError(
            f"{budget} bytes are less than the {least * itemsize} that rank 1 takes in each of {len(matrices)} layers; "
            "give more, or factorise fewer layers"
        )
    ranks = {name: max(1, int(k)) for name, k in _even_gain(matrices, left).items()}
    spare = left - sum(ranks[name] * m.price for name, m in matrices.items())
    while spare > 0:  # whole ranks: what rounding down left goes where it gains most
        gains = {n: _gain(m, ranks[n]) for n, m in matrices.items() if ranks[n] < m.most and m.price <= spare}
        if not gains:
            break
        best = max(gains, key=lambda n: gains[n])
        ranks[best] += 1
        spare -= matrices[best].price
    return ranks


def _even_gain(matrices: Mapping[str, Matrix], left: float) -> dict[str, float]:
    """The real-valued ranks: those that leave [1, most] are set to the bound, and the others share what remains."""
    found: dict[str, float] = {}
    free = dict(matrices)
    while free:
        weigh = {name: math.sqrt(effective_rank(m.spectrum) / m.price) for name, m in free.items()}
        total = sum(weigh[name] * m.price for name, m in free.items())
        wanted = {name: left * weigh[name] / total if total else 1.0 for name in free}
        low = {name: 1.0 for name in free if wanted[name] < 1}
        bound = low or {name: float(m.most) for name, m in free.items() if wanted[name] > m.most}
        if not bound:
            return found | wanted
        found |= bound
        left -= sum(k * free.pop(name).price for name, k in bound.items())
    return found


def _gain(matrix: Matrix, rank: int) -> float:
    """What one more rank takes off ``R / k``, for each number it stores."""
    return effective_rank(matrix.spectrum) / (rank * (rank + 1)) / matrix.price


def toward_values(
    ranks: Mapping[str, int], matrices: Mapping[str, Matrix], attention: Iterable[tuple[str, str, str]], share: float
) -> dict[str, int]:
    """Move ``share`` of the ranks of Q and K to V, at no more bytes than before; attention: names (Q, K, V) by layer.

    Under grouped queries V is small: it takes what its full rank allows, and only so much leaves Q and K.
    """
    if not 0 <= share < 1:
        raise WeightsError(f"the share of ranks that leaves Q and K must be in [0, 1), not {share!r}")
    moved = dict(ranks)
    for q, k, v in attention:
        freed = {name: min(int(share * moved[name]), moved[name] - 1) for name in (q, k)}
        held = sum(freed[name] * matrices[name].price for name in (q, k))
        room = (matrices[v].most - moved[v]) * matrices[v].price
        given = 0.0
        for name in (q, k):
            if held:
                leaves = math.ceil(freed[name] * min(1.0, room / held))
                moved[name] -= leaves
                given += leaves * matrices[name].price
        moved[v] = min(matrices[v].most, moved[v] + int(given // matrices[v].price))
    return moved
