"""A plan beside one candidate for all layers: both carried out, and measured on prompts that neither knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from vtc.models import family_of
from vtc.weights.calibration.block_walk import Example
from vtc.weights.formats import hf
from vtc.weights.pipeline import compress
from vtc.weights.planning.plan import Plan, Probe
from vtc.weights.recipe import Recipe
from vtc.weights.select import layers_of


@dataclass(frozen=True)
class Check:
    """Mean divergences in nats over ``prompts`` prompts: of the plan, and of ``passes`` on every layer (None where no
    candidate is small enough), with the standard error of their difference."""

    plan: float
    prompts: int
    passes: str | None = None
    uniform: float = float("nan")
    error: float = float("nan")

    @property
    def won(self) -> bool:
        """Whether the plan diverges less than its rival, or has none."""
        return self.passes is None or self.plan < self.uniform

    def __str__(self) -> str:
        told = f"On {self.prompts} other prompts the plan diverges by {self.plan:.3g} nats"
        if self.passes is None:
            return f"{told}; no single candidate for all layers is within its limit."
        told += (
            f", {self.passes} on every layer by {self.uniform:.3g} (standard error of the difference {self.error:.2g})."
        )
        return told if self.won else f"{told} The plan does not pay: take that recipe, or plan with more prompts."


def check(
    model: nn.Module, plan: Plan, calibration: Iterable[Example], heldout: Iterable[Example], like: Any = "int4"
) -> Check:
    """``plan`` against the best candidate for all layers within its limit. The model is left as it was.

    calibration: what the plan's candidates were fitted to; heldout: prompts that played no part in the plan; like: the
    recipe whose layers and buckets the plan has.
    """
    calibration, probe, like = list(calibration), Probe(model, heldout), Recipe.of(like)

    def lost(recipe: Recipe) -> Any:
        with compressed(model, recipe, calibration):
            return probe.each(model).cpu().numpy()

    planned, passes = lost(plan.recipe(like)), rival(plan)
    if passes is None:
        return Check(float(planned.mean()), len(planned))
    everywhere = Plan(dict.fromkeys(plan.chosen, passes), plan.trials, plan.cost, plan.limit)
    uniform = lost(everywhere.recipe(like))
    error = float(np.std(planned - uniform) / len(planned) ** 0.5)
    return Check(float(planned.mean()), len(planned), passes, float(uniform.mean()), error)


def rival(plan: Plan) -> str | None:
    """The candidate of the least divergence foreseen among those that keep to the plan's limit on every layer."""
    found = {}
    for text in dict.fromkeys(t.passes for t in plan.trials):
        these = [t for t in plan.trials if t.passes == text]
        if sum(getattr(t, plan.cost) for t in these) <= plan.limit:
            found[text] = sum(t.divergence for t in these)
    return min(found, key=found.__getitem__, default=None)


@contextmanager
def compressed(model: nn.Module, recipe: Recipe, calibration: list[Example]) -> Iterator[None]:
    """Compressed inside, as it was after; so is what older passes over the structure left in its config."""
    layers = layers_of(model, family_of(model), recipe.include, recipe.skip)
    older = hf.config_of(model)
    compress(model, recipe, calibration, progress=False)
    try:
        yield
    finally:
        for name, layer in layers.items():
            hf.replace_module(model, name, layer)
        hf.unmark(model)
        if older is not None:
            hf.mark(model, older.layers, older.manifest)
