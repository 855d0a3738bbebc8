"""Spending by need: a busy picture keeps more tokens than an easy one, and their mean meets the budget.

The need of a picture is how many directions its token features, as unit vectors z_n, spread over besides the first
(their effective rank, or participation ratio, less one):

need = 1 / |C|_F^2 - 1,   C = mean over n of z_n z_n^T

It is 0 when all tokens point one way and r - 1 when they point r orthogonal ways alike. It costs about as much as one
D x D linear layer, and never a matrix of more than D x D. Only ratios of needs count, so that a direction all tokens
share does no harm.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean

import torch
from torch import Tensor

from vtc.kernels.match import unit
from vtc.tokens import Budget

POWER = 1 / 3  # in proportion (1), easy pictures starve at small budgets: measured in docs/spend.md
EQUAL = "equal"  # every picture gets the budget


@dataclass(frozen=True)
class Spend:
    """How much of ``budget`` one picture gets: its fair tokens times ``(need / level) ** power``, from ``least`` to
    ``most`` times the fair tokens, in whole tokens averaged over the decoder layers.

    level: the need of a picture that gets just its fair tokens; ``vtc.calibrate_spend`` finds it. power: in (0, 1], how
    much needs count. spread: least, mean and most tokens of the pictures it was calibrated on. A picture's tokens
    depend on that picture and on these numbers, on nothing else.
    """

    budget: int | float
    level: float
    least: float = 0.5
    most: float = 2.0
    power: float = POWER
    spread: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        Budget(self.budget)
        for name, value, low, high in (
            ("level", self.level, 0, math.inf),
            ("least", self.least, 0, 1),
            ("most", self.most, 1, math.inf),
            ("power", self.power, 0, 1),
        ):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not low <= value <= high or not 0 < value < math.inf:
                raise ValueError(f"spend: {name}={value!r} is not a number above 0, from {low} to {high}; give one")

    def own(self, count: int, need: float) -> int:
        """Layer-averaged tokens of a picture of ``count`` tokens with that ``need``."""
        fair = Budget(self.budget).tokens(count)
        low, high = self.bounds(count)
        return min(high, max(low, math.floor(fair * (need / self.level) ** self.power)))

    def bounds(self, count: int) -> tuple[int, int]:
        """The fewest and the most tokens a picture of ``count`` tokens may get: 1 to ``count`` at the widest."""
        fair = Budget(self.budget).tokens(count)
        return max(1, math.ceil(self.least * fair - 1e-9)), min(count, math.floor(self.most * fair + 1e-9))

    def agree(self, budget: Budget) -> None:
        """Raises ``ValueError`` where the patch has another budget than the one that was calibrated."""
        if Budget(self.budget) != budget:
            raise ValueError(
                f"spend was calibrated at budget {self.budget!r} and the patch has {budget.value!r}; calibrate it for "
                f"that one: vtc.calibrate_spend(model, prompts, budget={budget.value!r})"
            )


@torch.no_grad()
def needs(features: Tensor, count: Sequence[int]) -> list[float]:
    """The need of each picture. features ``[I, N, D]``, of which the first ``count[i]`` tokens are picture i's.

    Each by itself, so that neither padding nor other pictures change a bit of it. Tokens with a NaN are left out. The
    device is waited for once.
    """
    found = torch.stack([_need(picture[:n]) for picture, n in zip(features, count, strict=True)])
    return found.tolist()


def _need(picture: Tensor) -> Tensor:
    """Of one picture, ``[N, D]``."""
    direction = unit(picture)
    sound = direction.isfinite().all(dim=1)
    direction = direction.where(sound[:, None], 0)
    tall = direction.shape[0] > direction.shape[1]
    product = direction.mT @ direction if tall else direction @ direction.mT  # of the same norm; the smaller one
    spread = (product / sound.sum().clamp(min=1)).square().sum()
    return (1 / spread.clamp(min=1e-12) - 1).clamp(min=0)


def settle(
    found: Sequence[float],
    counts: Sequence[int],
    budget: int | float,
    least: float = 0.5,
    most: float = 2.0,
    power: float = POWER,
) -> Spend:
    """The ``Spend`` of the lowest level at which pictures of the needs ``found``, of ``counts`` tokens, cost no more
    than ``budget`` in the mean. It lies midway between two levels at which a picture's tokens change, so that no
    rounding decides."""
    fair = mean(Budget(budget).tokens(n) for n in counts)
    edges = sorted(
        {edge for need, n in zip(found, counts, strict=True) for edge in _edges(need, n, budget, most, power)} - {0.0}
    )
    levels = [math.sqrt(a * b) for a, b in pairwise([edges[0] / 2, *edges, edges[-1] * 2] if edges else [1.0, 1.0])]

    def tokens(level: float) -> list[int]:
        rule = Spend(budget, level, least, most, power)
        return [rule.own(n, need) for n, need in zip(counts, found, strict=True)]

    level = levels[bisect_left(levels, True, key=lambda level: mean(tokens(level)) <= fair)]
    chosen = tokens(level)
    return Spend(budget, level, least, most, power, (float(min(chosen)), float(mean(chosen)), float(max(chosen))))


def _edges(need: float, count: int, budget: int | float, most: float, power: float) -> list[float]:
    """The levels at which a picture's tokens change by one."""
    fair = Budget(budget).tokens(count)
    return [need * (fair / tokens) ** (1 / power) for tokens in range(1, math.floor(most * fair) + 1)]
