"""A recipe of low ranks by effective rank (D-Rank, arXiv 2509.25622), for ``vtc.compress``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from vtc.errors import WeightsError
from vtc.models import family_of
from vtc.weights.calibration.block_walk import Example, Walk
from vtc.weights.calibration.token_weighting import weigher
from vtc.weights.fitting.lowrank import spectrum
from vtc.weights.passes import registry
from vtc.weights.passes.base import check_share
from vtc.weights.pipeline import in_order
from vtc.weights.planning.ranks import Matrix, allocate, toward_values
from vtc.weights.recipe import Recipe
from vtc.weights.select import layers_of

QKV = ("q_proj", "k_proj", "v_proj")


def ranked(
    model: nn.Module,
    calibration: Iterable[Example],
    keep: float = 0.6,
    to_values: float = 0.0,
    like: Any = "svdllm",
) -> Recipe:
    """``svdllm`` with a rank for each layer: layers of one kind (all q_proj, all up_proj, ...) share ``keep`` of their
    weights by the effective rank of W L; ``to_values`` of the ranks of Q and K then go to V.

    like: a recipe whose parts, skipped layers and buckets are taken. The model is left as it was; the recipe is to be
    fitted to the same calibration. Departs from the paper: layers are not grouped into shared bases.
    """
    check_share("keep", keep)
    base = Recipe.of(like)
    matrices = measured(model, calibration, base)
    kinds: dict[str, dict[str, Matrix]] = {}
    for name, matrix in matrices.items():
        kinds.setdefault(name.rpartition(".")[2], {})[name] = matrix
    ranks: dict[str, int] = {}
    for kind in kinds.values():
        ranks |= allocate(kind, int(keep * sum(m.out * m.width for m in kind.values())), itemsize=1)
    if to_values:
        ranks = toward_values(ranks, matrices, attention_of(matrices), to_values)
    chosen = tuple((name, (registry["svdllm"](rank=ranks[name]),)) for name in matrices)  # type: ignore[call-arg]
    return Recipe(base.passes, base.include, base.skip, base.buckets, chosen)


@torch.no_grad()
def measured(model: nn.Module, calibration: Iterable[Example], recipe: Recipe) -> dict[str, Matrix]:
    """Size and singular values of each layer that ``recipe`` includes, whitened by what it sees."""
    family = family_of(model)
    layers = layers_of(model, family, recipe.include, recipe.skip)
    walk = Walk(model, calibration)
    weigh, found = weigher(recipe.buckets, walk), {}
    for block, inside in in_order(model, family, layers):
        seen = walk.see(block, inside)
        for name, layer in inside.items():
            out, width = layer.weight.shape
            found[name] = Matrix(out, width, spectrum(layer.weight.detach(), weigh(block, seen[name])))
        if isinstance(block, int):
            walk.step(block)
    return found


def attention_of(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """The names of Q, K and V of each attention that has all three. Raises ``WeightsError`` without any."""
    known = set(names)
    stems = [name.removesuffix("q_proj") for name in names if name.endswith(".q_proj")]
    found = [(stem + QKV[0], stem + QKV[1], stem + QKV[2]) for stem in stems]
    whole = [each for each in found if known.issuperset(each)]
    if not whole:
        raise WeightsError("no attention has q_proj, k_proj and v_proj apart; set to_values=0")
    return whole
