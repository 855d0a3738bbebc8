"""A fine-tuned model as its small difference from the base, made by any recipe. ``delta_files`` saves it, ``deltas``
holds several over one base."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtc.errors import CheckpointError, WeightsError
from vtc.models import family_of
from vtc.weights.calibration.block_walk import Example, Walk
from vtc.weights.calibration.token_weighting import weigher
from vtc.weights.codec.terms.base import Tensors, Term
from vtc.weights.fitting.gram import Gram
from vtc.weights.passes.base import Candidate, Pass
from vtc.weights.pipeline import in_order
from vtc.weights.recipe import Recipe
from vtc.weights.select import layers_of


@dataclass(frozen=True)
class Change:
    """What is added to one linear layer's weight of ``shape`` (O, D). error: squared output error over the squared
    output of the whole change, None without calibration."""

    shape: tuple[int, int]
    parts: tuple[tuple[Term, Tensors], ...]
    dtype: torch.dtype
    error: float | None = None

    def dense(self) -> Tensor:
        """``[O, D]``: the change of the weight."""
        return sum(term.dense(tensors, *self.shape) for term, tensors in self.parts)  # type: ignore[return-value]

    def product(self, x: Tensor) -> Tensor:
        """``[..., D] -> [..., O]``: what it adds to the layer's output."""
        return sum(term.product(x, tensors, *self.shape) for term, tensors in self.parts)  # type: ignore[return-value]

    def to(self, device: torch.device) -> Change:
        parts = tuple((term, {name: t.to(device) for name, t in tensors.items()}) for term, tensors in self.parts)
        return Change(self.shape, parts, self.dtype, self.error)


@dataclass(frozen=True)
class Delta:
    """A fine-tuned model less its base. layers: compressed changes by the name of the linear layer; whole: the other
    parameters that differ, as the fine-tuned model has them; base, base_sha256: the model it belongs to."""

    base: str
    base_sha256: str
    recipe: dict[str, Any]
    layers: dict[str, Change]
    whole: dict[str, Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by the name it is saved under."""
        found = {f"whole/{name}": tensor for name, tensor in self.whole.items()}
        for layer, change in self.layers.items():
            for n, (_, tensors) in enumerate(change.parts):
                found |= {key_of(layer, n, name): tensor for name, tensor in tensors.items()}
        return found

    @property
    def bytes(self) -> int:
        """Of every tensor, packed as it is stored."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())


def parameters_sha256(model: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of the parameters, however they are spread over files."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {parameter.dtype} {list(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def difference(
    base: nn.Module,
    tuned: nn.Module,
    recipe: Any = "deltacome",
    calibration: Iterable[Example] | None = None,
    progress: bool = True,
) -> Delta:
    """``tuned - base`` by ``recipe``. The linear layers that it includes are compressed; every other parameter that
    differs is kept whole, so nothing of the fine-tuning is lost unseen.

    calibration: prompts with pictures, as the processor makes them; they run through ``tuned``. Raises ``WeightsError``
    for models whose parameters do not match, and for what ``vtc.compress`` refuses.
    """
    from tqdm import tqdm

    recipe = Recipe.of(recipe)
    if recipe.structured:
        raise WeightsError(f"{recipe.structured[0].name} changes the structure, which a delta cannot; leave it out")
    if recipe.needs_gram and calibration is None:
        raise WeightsError(f"{recipe.every[0].name} needs calibration=: prompts with pictures, from the processor")
    changed = _changed(base, tuned)
    family = family_of(tuned)
    found = layers_of(tuned, family, recipe.include, recipe.skip)
    for name, _ in recipe.by_layer:
        if name not in found:
            wrong = f"by_layer names {name!r}, which is not among the {len(found)} layers of this model"
            raise recipe.told(WeightsError(wrong))
    found = {n: layer for n, layer in found.items() if isinstance(layer, nn.Linear) and recipe.passes_for(n)}
    chosen = {n: layer for n, layer in found.items() if f"{n}.weight" in changed}
    walk = Walk(tuned, calibration or []) if recipe.needs_gram else None
    weigh = None if walk is None else weigher(recipe.buckets, walk)
    layers: dict[str, Change] = {}
    for block, inside in tqdm(in_order(tuned, family, chosen), desc="deltas", unit="block", disable=not progress):
        seen = {} if walk is None else walk.see(block, inside)
        for name, layer in inside.items():
            gram = None if weigh is None else weigh(block, seen[name])
            passes = recipe.passes_for(name)
            layers[name] = _fitted(name, base.get_parameter(f"{name}.weight"), layer.weight, gram, passes)
        if walk is not None and isinstance(block, int):
            walk.step(block)
    whole = {k: tuned.get_parameter(k).detach().clone() for k in changed if k.removesuffix(".weight") not in layers}
    name = getattr(getattr(base, "config", None), "_name_or_path", "") or type(base).__name__
    return Delta(name, parameters_sha256(base), recipe.written(), layers, whole)


@torch.no_grad()
def _fitted(name: str, base: Tensor, tuned: Tensor, gram: Gram | None, passes: tuple[Pass, ...]) -> Change:
    change = tuned.float() - base.to(tuned.device).float()
    candidate = Candidate(change, gram or Gram.empty(1), base.dtype)
    try:
        for each in passes:
            candidate = each.fit(candidate)
    except WeightsError as error:
        raise WeightsError(f"{name}: {error}") from error
    out, width = change.shape
    return Change((out, width), candidate.all_parts, base.dtype, candidate.error if gram else None)


def _changed(base: nn.Module, tuned: nn.Module) -> list[str]:
    """Names of the parameters that differ. Raises ``WeightsError`` where the models do not match."""
    ours, theirs = dict(base.named_parameters()), dict(tuned.named_parameters())
    for name in sorted(ours.keys() ^ theirs.keys()):
        raise WeightsError(
            f"only one of base and fine-tuned model has {name}; merge adapters first, and give two of a kind"
        )
    for name, parameter in ours.items():
        told = [f"{list(t.shape)} {t.dtype}" for t in (parameter, theirs[name])]
        if told[0] != told[1]:
            raise WeightsError(
                f"{name} is {told[0]} in the base and {told[1]} in the fine-tuned model; load both alike"
            )
    saved, buffers = base.state_dict(), dict(tuned.named_buffers())
    for name, buffer in base.named_buffers():
        if name in saved and not torch.equal(buffer, buffers[name]):
            raise WeightsError(f"{name} differs and is a buffer, no parameter; a delta cannot hold it")
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


def key_of(layer: str, n: int, name: str) -> str:
    """The name that a tensor of a layer's term n is saved under."""
    return f"layers/{layer}/{n}/{name}"


def merge(model: nn.Module, delta: Delta) -> nn.Module:
    """Add ``delta`` to the weights of ``model`` for good. Raises ``CheckpointError`` for another base."""
    check_base(delta, parameters_sha256(model))
    check_names(delta, model)
    with torch.no_grad():
        for name, change in delta.layers.items():
            weight: Any = model.get_parameter(f"{name}.weight")
            weight += change.to(weight.device).dense().to(weight.dtype)
        for name, tensor in delta.whole.items():
            model.get_parameter(name).copy_(tensor)
    return model


def check_base(delta: Delta, found: str) -> None:
    """Raises ``CheckpointError`` when ``found`` is not the hash of the base that ``delta`` was made from."""
    if found != delta.base_sha256:
        raise CheckpointError(
            f"this delta belongs to {delta.base} with weights {delta.base_sha256[:12]}…, and this model's weights hash "
            f"to {found[:12]}…; load that base, in the dtype it was compared in, without other changes"
        )


def check_names(delta: Delta, model: nn.Module) -> None:
    """Raises ``CheckpointError`` for a layer or a parameter that ``model`` lacks or has in another shape."""
    held = dict(model.named_parameters())
    wanted = {f"{name}.weight": change.shape for name, change in delta.layers.items()}
    for name, shape in (wanted | {name: tuple(tensor.shape) for name, tensor in delta.whole.items()}).items():
        if name not in held or tuple(held[name].shape) != tuple(shape):
            raise CheckpointError(f"this delta changes {name} {list(shape)}, which this model does not have")
