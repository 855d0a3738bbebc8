"""Which candidate each layer gets, so that the damage is least and the cost within a limit: a multiple-choice knapsack.

``scipy.optimize.milp`` (HiGHS) with a time limit; the answer of Lagrangian bisection stands where it finds nothing
better in time, so the time is bounded and there always is an answer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vtc.errors import WeightsError

Floats = NDArray[np.float64]
SECONDS = 0.5


def solve(damage: Floats, cost: Floats, limit: float, seconds: float = SECONDS) -> list[int]:
    """The candidate of each of L layers: least total ``damage [L, C]`` with total ``cost [L, C]`` at most ``limit``.

    A candidate that a layer does not have is infinite in either. Raises ``WeightsError`` when the cheapest candidates
    cost more than ``limit``, and for values that are no numbers.
    """
    damage, cost = np.asarray(damage, float), np.asarray(cost, float)
    if damage.shape != cost.shape or damage.ndim != 2 or not damage.size:
        raise WeightsError(f"damage {damage.shape} and cost {cost.shape} must both be [layers, candidates]")
    if np.isnan(damage).any() or np.isnan(cost).any():
        raise WeightsError("a damage or cost is not a number; measure again")
    there = np.isfinite(damage) & np.isfinite(cost)
    if not there.any(1).all():
        raise WeightsError(f"layer {int((~there.any(1)).argmax())} has no candidate; give it one, or leave it out")
    cost = np.where(there, cost, np.inf)
    least = float(cost.min(1).sum())
    if least > limit * (1 + 1e-12):
        raise WeightsError(
            f"the cheapest candidates cost {least:.6g}, more than the limit {limit:.6g}; give a limit from {least:.6g} "
            "on, or smaller candidates"
        )
    damage = np.where(there, damage, np.inf)
    found = lagrangian(damage, cost, limit)
    better = exact(damage, cost, limit, seconds)
    rows = np.arange(len(damage))
    if better is not None and damage[rows, better].sum() < damage[rows, found].sum():
        found = better
    return [int(c) for c in found]


def lagrangian(damage: Floats, cost: Floats, limit: float) -> NDArray[np.intp]:
    """The least ``damage + price * cost`` of each layer, at the lowest price that keeps to the limit; what is left of
    the limit then buys the best improvements for their cost, one by one."""
    rows = np.arange(len(damage))
    least = np.where(cost == cost.min(1, keepdims=True), damage, np.inf).argmin(1)
    with np.errstate(invalid="ignore"):
        at = lambda price: np.where(np.isfinite(damage), damage + price * cost, np.inf).argmin(1)  # noqa: E731
        low, high = 0.0, 1.0
        while cost[rows, at(high)].sum() > limit and high < 1e300:
            high *= 4
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if cost[rows, at(middle)].sum() > limit else (low, middle)
        found = at(high)
    if cost[rows, found].sum() > limit:
        found = least
    return _spend(damage, cost, limit, found)


def lagrangian_bound(damage: Floats, cost: Floats, limit: float) -> float:
    """What no choice within the limit can be below: the largest, over prices, of the least ``damage + price * cost`` of
    each layer, less what the limit is worth."""
    from scipy.optimize import minimize_scalar

    def below(log_price: float) -> float:
        price = float(np.exp(log_price))
        with np.errstate(invalid="ignore"):
            priced = np.where(np.isfinite(damage) & np.isfinite(cost), damage + price * cost, np.inf)
        return float(priced.min(1).sum() - price * limit)

    unit = np.log(damage[np.isfinite(damage)].max() / cost[np.isfinite(cost)].mean())
    found = minimize_scalar(lambda at: -below(at), bounds=(unit - 40, unit + 10), method="bounded")
    return max(below(found.x), float(damage.min(1).sum()))


def _spend(damage: Floats, cost: Floats, limit: float, found: NDArray[np.intp]) -> NDArray[np.intp]:
    rows = np.arange(len(damage))
    while True:
        left = limit - cost[rows, found].sum()
        gain = damage[rows, found][:, None] - damage
        price = cost - cost[rows, found][:, None]
        with np.errstate(invalid="ignore"):
            ratio = np.where((gain > 0) & (price <= left), gain / np.maximum(price, 1e-12), 0.0)
        if not ratio.any():
            return found
        layer, candidate = np.unravel_index(ratio.argmax(), ratio.shape)
        found[layer] = candidate


def exact(damage: Floats, cost: Floats, limit: float, seconds: float) -> NDArray[np.intp] | None:
    """HiGHS's answer within ``seconds``, None where it has none."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix, identity, kron

    layers, candidates = damage.shape
    there = np.isfinite(damage).ravel()
    scale = max(float(cost[np.isfinite(cost)].max()), 1e-300)
    unit = max(float(np.abs(damage[np.isfinite(damage)]).max()), 1e-300)
    one_each = LinearConstraint(kron(identity(layers), np.ones((1, candidates))), 1, 1)
    within = LinearConstraint(csr_matrix(np.where(there, cost.ravel(), 0)[None] / scale), -np.inf, limit / scale)
    answer = milp(
        np.where(there, damage.ravel(), 0) / unit,
        integrality=np.ones(damage.size),
        bounds=Bounds(0, there.astype(float)),
        constraints=[one_each, within],
        options={"time_limit": seconds, "mip_rel_gap": 1e-4},
    )
    if answer.x is None:
        return None
    found = answer.x.reshape(layers, candidates).argmax(1)
    rows = np.arange(layers)
    kept = cost[rows, found].sum() <= limit * (1 + 1e-9) and np.isfinite(damage[rows, found]).all()
    return found if kept else None
