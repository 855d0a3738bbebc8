"""``vtc.compress``: a recipe's passes over a model, block by block, the errors of earlier blocks carried along."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from vtc.errors import WeightsError
from vtc.models import family_of
from vtc.models.base import Family
from vtc.version import __version__
from vtc.weights.calibration.block_walk import Example, Walk
from vtc.weights.calibration.token_weighting import weigher
from vtc.weights.codec.linear import CompressedEmbedding, CompressedLinear
from vtc.weights.fitting.gram import Gram
from vtc.weights.formats import hf
from vtc.weights.formats.manifest import calibration_sha256
from vtc.weights.passes._structure import Scope
from vtc.weights.passes.base import Candidate, Pass
from vtc.weights.recipe import Recipe
from vtc.weights.select import block_of, layers_of, part_of
from vtc.weights.structure.edits import Edits

Layers = dict[str, Any]  # nn.Linear or nn.Embedding by name


def compress(
    model: nn.Module, recipe: Any = "int4", calibration: Iterable[Example] | None = None, progress: bool = True
) -> nn.Module:
    """Compress the weights of ``model`` in place by ``recipe`` (see ``vtc.weights.recipe``) and return it.

    calibration: a few dozen prompts with pictures, as the processor makes them; a token patch that is on the model
    stays on and is calibrated with. Recipes that only round need none. Passes over the structure run first, and a model
    that went through such passes alone may be compressed again. What every layer lost and weighs stands in
    ``model.config.quantization_config.manifest``. On an error, or when interrupted, the model is as it was.

    Raises ``WeightsError`` for a recipe, a calibration or a layer that cannot be compressed.
    """
    family, recipe = family_of(model), Recipe.of(recipe)
    older = hf.config_of(model)
    if older is not None and any(written["terms"] for written in older.layers.values()):
        raise WeightsError("this model is compressed already; compress the original by one recipe of all passes")
    if recipe.needs_gram and calibration is None:
        raise WeightsError(f"{recipe.every[0].name} needs calibration=: prompts with pictures, from the processor")
    try:
        layers_of(model, family, recipe.include, recipe.skip)  # names that are wrong, before anything is done
    except WeightsError as error:
        raise recipe.told(error) from error
    examples = list(calibration or [])
    edits = Edits()
    edits.resized += [model.get_submodule(name) for name in (older.layers if older else ())]
    told: dict[str, Any] = {}
    try:
        scope = Scope(examples, recipe.buckets, recipe.skip)
        structure = [{"pass": p.name, **p.apply(model, scope, edits)} for p in recipe.structured]
        resized = {id(module) for module in edits.resized}
        names = [name for name, module in model.named_modules() if id(module) in resized]
        if recipe.fitted or recipe.by_layer:
            told = _fit_layers(model, recipe, examples, edits, progress)
        where = {id(module): name for name, module in model.named_modules()}
        layers = {n: hf.written(model.get_submodule(n), n in names, where) for n in dict.fromkeys([*names, *told])}
    except BaseException:
        edits.undo()
        raise
    manifest = {
        "recipe": recipe.written(),
        "calibration_sha256": calibration_sha256(examples) if examples else None,
        "structure": structure,
        "layers": told,
        "vtc": __version__,
    }
    if older is not None:
        manifest["before"] = older.manifest
    if layers:  # fewer decoder layers alone are an ordinary model
        hf.mark(model, layers, manifest)
    return model


def _fit_layers(
    model: nn.Module, recipe: Recipe, examples: list[Example], edits: Edits, progress: bool
) -> dict[str, dict[str, Any]]:
    """Fit the recipe's other passes to layer after layer; what each weighs and lost, by name."""
    from tqdm import tqdm

    family = family_of(model)
    layers = layers_of(model, family, recipe.include, recipe.skip)
    for name, _ in recipe.by_layer:
        if name not in layers:
            wrong = f"by_layer names {name!r}, which is not among the {len(layers)} layers of this model"
            raise recipe.told(WeightsError(wrong))
    layers = {name: layer for name, layer in layers.items() if recipe.passes_for(name)}
    walk = Walk(model, examples) if any(p.needs_gram for name in layers for p in recipe.passes_for(name)) else None
    weigh = None if walk is None else weigher(recipe.buckets, walk)
    told = {}
    for block, inside in tqdm(in_order(model, family, layers), desc="compressing", unit="block", disable=not progress):
        seen = {} if walk is None else walk.see(block, inside)
        for name, layer in inside.items():
            gram = None if weigh is None else weigh(block, seen[name])
            done = fitted(name, layer, gram, recipe.passes_for(name))
            parent, _, child = name.rpartition(".")
            edits.set(model.get_submodule(parent), child, standing_in(layer, done))
            told[name] = {"bits": done.bits, "bytes": done.bytes, "error": None if gram is None else done.error}
        if walk is not None and isinstance(block, int):
            walk.step(block)
    return told


def in_order(model: nn.Module, family: Family, layers: Layers) -> list[tuple[int | str, Layers]]:
    """The layers by decoder block, in the order a forward meets them: "before" the decoder, each block, "after" it.
    Blocks without a layer are there, too: a walk must pass them."""
    found: dict[int | str, Layers] = {"before": {}, **{n: {} for n in range(len(family.layers))}, "after": {}}
    for name, layer in layers.items():
        block = block_of(name, model, family)
        outside = "after" if part_of(name, layer, model, family) == "lm_head" else "before"
        found[outside if block is None else block][name] = layer
    return [(block, inside) for block, inside in found.items() if inside or isinstance(block, int)]


def standing_in(layer: Any, done: Candidate) -> nn.Module:
    """The compressed module for ``layer``."""
    if isinstance(layer, nn.Embedding):
        return CompressedEmbedding.filled(layer, done.all_parts)
    return CompressedLinear.filled(layer.in_features, layer.out_features, done.all_parts, layer.bias, layer.weight)


def fitted(name: str, layer: Any, gram: Gram | None, passes: tuple[Pass, ...]) -> Candidate:
    """The layer after the passes; gram: None where none of them needs one."""
    weight = layer.weight.detach().float()
    if not bool(torch.isfinite(weight).all()):
        raise WeightsError(f"{name} holds weights that are not finite; the checkpoint is damaged, load it again")
    if isinstance(layer, nn.Embedding) and any(p.needs_gram for p in passes):
        raise WeightsError(f"{name} is an embedding, which only rtn compresses; use a recipe of rtn, or leave it out")
    candidate = Candidate(weight, Gram.empty(1) if gram is None else gram, layer.weight.dtype)
    for each in passes:
        candidate = each.fit(candidate)
    return candidate
