"""From a layer-averaged budget to the tokens each stage keeps."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

from vtc.errors import BudgetError
from vtc.tokens import Budget


def average(counts: list[int], starts: tuple[int, ...], layers: int, full: int, rest: tuple[int, ...] = ()) -> float:
    """Tokens averaged over ``layers`` decoder layers when stage s leaves ``counts[s]`` from layer ``starts[s]`` on, and
    none run in the layers of ``rest``."""
    edges = [0, *starts, layers]
    runs = [b - a - sum(a <= layer < b for layer in rest) for a, b in pairwise(edges)]
    return sum(n * layers_run for n, layers_run in zip([full, *counts], runs, strict=True)) / layers


@lru_cache(maxsize=65536)
def solve(
    full: int,
    budget: Budget,
    starts: tuple[int, ...],
    powers: tuple[int, ...],
    layers: int,
    name: str = "this method",
    factors: tuple[float, ...] = (),
    rest: tuple[int, ...] = (),
) -> tuple[int, ...]:
    """How many tokens each stage keeps of a picture of ``full`` tokens: the most whose layer average meets the budget.

    Stage s keeps ``factors[s] * full * ratio ** powers[s]`` (floor, from 1 to all; the factors are 1 unless given) with
    one ``ratio`` for all stages; in layers of ``rest`` none of them runs. Raises
    ``BudgetError`` with the least reachable budget when the layers before the first stage alone cost more.
    """
    allowed = budget.tokens(full)
    if allowed >= full:
        return (full,) * len(starts)

    def counts(ratio: float) -> list[int]:
        wanted = [f * full * ratio**p for f, p in zip(factors or (1.0,) * len(powers), powers, strict=True)]
        return [min(full, max(1, math.floor(n + 1e-9))) for n in wanted]

    least = average([1] * len(starts), starts, layers, full, rest)
    if least > allowed + 1e-9:
        raise BudgetError(
            f"{name} keeps all {full} vision tokens in its first {starts[0]} of {layers} layers, so the least "
            f"layer-averaged budget is {math.ceil(least)} tokens, and {allowed:g} were asked for; raise the budget or "
            "use a method at the decoder's input",
            least=math.ceil(least),
        )
    low, high = 0.0, 1.0 / min(factors, default=1.0)
    for _ in range(50):  # the average is monotone in the ratio; floors rule out a closed form for several stages
        middle = (low + high) / 2
        fits = average(counts(middle), starts, layers, full, rest) <= allowed + 1e-9
        low, high = (middle, high) if fits else (low, middle)
    return tuple(counts(low))


def keys_a_layer(full: int, budget: Budget, layers: int, rest: tuple[int, ...] = ()) -> int:
    """How many keys of a picture of ``full`` tokens each decoder layer may have, those of ``rest`` none."""
    return max(1, min(full, math.floor(budget.tokens(full) * layers / (layers - len(rest)) + 1e-9)))


def keys_to_spend(full: int, budget: Budget, first: int, layers: int) -> int:
    """How many keys the decoder layers from ``first`` on may hold together of a picture of ``full`` tokens, when the
    layers before hold them all."""
    return math.floor(budget.tokens(full) * layers + 1e-9) - first * full


def allot(left: int, weights: list[float], full: int, need: float, usual: float) -> int:
    """How many of the ``left`` keys the first of the layers that are left gets: its share of their ``weights``, times
    its need over the usual one, at most doubled or halved; each layer after it can have 1 to ``full``, and the last
    spends the rest."""
    layers = len(weights)
    ratio = min(max(need / usual, 0.5), 2.0) if usual > 0 else 1.0
    wanted = math.floor(left / (sum(weights) / weights[0]) * ratio + 0.5)
    return min(max(wanted, 1, left - (layers - 1) * full), full, left - (layers - 1))
