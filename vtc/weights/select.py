"""Which linear layers of a model are compressed: those of the decoder, unless more is asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from vtc.errors import WeightsError
from vtc.models.base import Family
from vtc.patching.patch import LEARNED
from vtc.weights.structure.sharing import BorrowedLinear

PARTS = ("decoder", "tower", "projector", "lm_head", "embeddings")


def layers_of(
    model: nn.Module, family: Family, include: Iterable[str] = ("decoder",), skip: Iterable[str] = ()
) -> dict[str, nn.Module]:
    """Linear layers (and embeddings, where asked for) by their names in ``model``, in the model's order.

    skip: regular expressions searched for in the names. A weight that another module shares (tied embeddings) is
    left alone. Raises ``WeightsError`` for an unknown part, and for an expression that no layer's name matches.
    """
    include, skip = tuple(include), tuple(skip)
    for part in include:
        if part not in PARTS:
            raise WeightsError(f"there is no part {part!r} to compress; there are: {', '.join(PARTS)}")
    tied = _tied(model)
    found: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, nn.Embedding)  # a subclass may do more than multiply
        and part_of(name, module, model, family) in include
        and id(module.weight) not in tied
    }
    for pattern in skip:
        if not any(re.search(pattern, name) for name in found):
            raise WeightsError(
                f"skip: {pattern!r} matches none of the {len(found)} layers (one is {next(iter(found), None)!r}); "
                "correct it or take it out"
            )
    left = {name: module for name, module in found.items() if not any(re.search(pattern, name) for pattern in skip)}
    if not left:
        raise WeightsError(
            f"no layer is left to compress (of {len(found)} in {', '.join(include)}); include more or skip less"
        )
    return left


def part_of(name: str, module: nn.Module, model: nn.Module, family: Family) -> str | None:
    """The part of the model a layer belongs to; None for one that is never compressed: embeddings of places, and what a
    patch learned."""
    if name.startswith(f"{LEARNED}."):
        return None
    head = getattr(model, "get_output_embeddings", None)
    if head is not None and module is head():
        return "lm_head"
    if isinstance(module, nn.Embedding):
        return "embeddings" if module is family.decoder.get_input_embeddings() else None
    if any(module is inner for inner in family.layers.modules()):
        return "decoder"
    tower = getattr(family, "tower", None)
    return "tower" if tower is not None and any(module is inner for inner in tower.modules()) else "projector"


def block_of(name: str, model: nn.Module, family: Family) -> int | None:
    """The index of the decoder layer a module stands in, None outside."""
    module = model.get_submodule(name)
    for index, layer in enumerate(family.layers):
        if any(module is inner for inner in layer.modules()):
            return index
    return None


def _tied(model: nn.Module) -> set[int]:
    """ids of weights that more than one module multiplies by."""
    seen: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, BorrowedLinear):
            seen[id(module.weight)] = seen.get(id(module.weight), 0) + 1
        for parameter in module._parameters.values():
            if parameter is not None:
                seen[id(parameter)] = seen.get(id(parameter), 0) + 1
    return {key for key, count in seen.items() if count > 1}
