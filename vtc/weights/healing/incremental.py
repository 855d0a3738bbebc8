"""Prune a little, heal, prune again, instead of all at once (Adapt-Pruner, arXiv 2502.03460)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from vtc.errors import WeightsError
from vtc.weights.calibration.block_walk import Example
from vtc.weights.passes._structure import StructuredPass
from vtc.weights.passes.base import check_share
from vtc.weights.pipeline import compress
from vtc.weights.recipe import Recipe

Heal = Callable[[nn.Module, int], Any]


def in_steps(recipe: Any, by: float = 0.05) -> list[Recipe]:
    """The one structured pass of ``recipe`` in even steps of at most ``by`` of the model: each has the share of what
    the steps before left, so that together they remove the pass's own share."""
    check_share("by", by)
    whole = _structured(recipe)
    if len(whole.passes) != 1:
        raise WeightsError(f"steps are made of one pass with a share, not of {len(whole.passes)} passes")
    share: float = getattr(whole.passes[0], "share")  # noqa: B009
    count = math.ceil(share / by - 1e-9)
    even = share / count
    shares = [even / (1 - n * even) for n in range(count)]
    return [dataclasses.replace(whole, passes=(dataclasses.replace(whole.passes[0], share=s),)) for s in shares]  # type: ignore[call-arg]


def incrementally(
    model: nn.Module, steps: Iterable[Any], calibration: Iterable[Example] | None = None, heal: Heal | None = None
) -> nn.Module:
    """Apply each of ``steps`` (recipes of structured passes, see ``in_steps``) to ``model``, in place, and call
    ``heal(model, n)`` after step n: usually a few hundred steps of training. Every step looks at the calibration anew.

    Raises what ``vtc.compress`` raises; the model is then as the step before left it.
    """
    recipes = [_structured(step) for step in steps]
    examples = None if calibration is None else list(calibration)
    for n, recipe in enumerate(recipes):
        compress(model, recipe, examples, progress=False)
        if heal is not None:
            heal(model, n)
    return model


def _structured(given: Any) -> Recipe:
    recipe = Recipe.of(given)
    for each in recipe.passes:
        if not isinstance(each, StructuredPass):
            raise WeightsError(f"{each.name} cannot be healed in steps; compress with it once, after the last step")
    return recipe
