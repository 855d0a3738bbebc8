"""How many tokens each decoder layer should run: a genetic search over the schedule of a router."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from torch import nn

from vtc.errors import VTCError
from vtc.methods.router import Router
from vtc.patching.api import patch_of
from vtc.patching.patch import Patch

MOST = 4.0  # a layer runs at most this many times the tokens of an even share, or this part of it, before bounds


def search(
    model: nn.Module, objective: Callable[[], float], generations: int = 20, population: int = 4, seed: int = 0
) -> tuple[float, ...]:
    """The schedule with the least ``objective()``, say the loss on a few dozen prompts, of ``model`` as it is patched.
    The model runs with it from then on, learned routers and budget as they were, and ``vtc.save`` keeps it.

    Differential evolution (scipy) over the logs of the layers' weights, ``population * layers`` schedules a generation,
    the even one among the first. The paper searches by a genetic algorithm over discrete sparsities; here the budget
    makes every schedule feasible, so there is one objective and no constraint to trade it against.

    Raises ``VTCError`` for a model whose patch routes nothing, and for an objective that is NaN or infinite.
    """
    from scipy.optimize import differential_evolution

    patch = patch_of(model)
    if patch is None or patch.engine.router is None or not isinstance(patch.method, Router):
        raise VTCError("only a router has a schedule; call vtc.patch(model, 'router', ...) first")
    for name, value in (("generations", generations), ("population", population)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise VTCError(f"{name}={value!r} is not an int >= 1; give one, like 20")
    before = patch.method
    layers = len(before.weights(patch.engine.depth - patch.engine.router.first))

    def cost(logs: np.ndarray) -> float:
        use(patch, schedule_of(logs))
        value = float(objective())
        if not math.isfinite(value):
            raise VTCError(f"the objective is {value} at schedule {schedule_of(logs)}; it must be a finite number")
        return value

    limit = math.log(MOST)
    try:
        found = differential_evolution(
            cost,
            [(-limit, limit)] * layers,
            maxiter=generations,
            popsize=population,
            x0=np.zeros(layers),
            rng=seed,
            polish=False,
        )
    except BaseException as error:
        use(patch, before.schedule)
        if isinstance(error.__cause__, (TypeError, ValueError)):  # scipy takes the objective's own for one of its map
            raise error.__cause__ from None
        raise
    best = schedule_of(found.x)
    use(patch, best)
    return best


def schedule_of(logs: np.ndarray) -> tuple[float, ...]:
    """Weights with a mean of 1."""
    weights = np.exp(logs)
    return tuple(round(float(w), 6) for w in weights / weights.mean())


def use(patch: Patch, schedule: tuple[float, ...]) -> None:
    """Run by ``schedule`` from the next forward on; what was learned stays."""
    method = dataclasses.replace(patch.method, schedule=schedule).bound(patch.method.module)  # type: ignore[call-arg]
    patch.method = patch.engine.method = method
    patch.engine.set_budget(patch.engine.budget)
