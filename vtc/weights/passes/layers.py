"""Whole decoder layers that hardly change their states (ShortGPT, arXiv 2403.03853)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtc.errors import UnsupportedModel, WeightsError
from vtc.models import family_of
from vtc.patching.api import patch_of
from vtc.patching.patch import Patch
from vtc.weights.calibration.block_walk import Walk
from vtc.weights.calibration.channel_statistics import influence_of
from vtc.weights.passes import register
from vtc.weights.passes._structure import Scope, StructuredPass
from vtc.weights.passes.base import check_share
from vtc.weights.structure.edits import Edits
from vtc.weights.structure.sites import refuse_shared_keys


@register("layers")
@dataclass(frozen=True)
class Layers(StructuredPass):
    """Remove the ``share`` of decoder layers (to the nearest whole number) with the least Block Influence: mean of
    1 - cosine of a token's states before and after. A token patch is lifted while it is measured.

    choose: "influence", or "even": layers spread evenly, whatever they do, as DistilBERT (arXiv 1910.01108) starts from
    every second one; that needs no calibration.
    """

    share: float = 0.25
    choose: str = "influence"
    name = "layers"

    def __post_init__(self) -> None:
        check_share("share", self.share)
        if self.choose not in ("influence", "even"):
            raise WeightsError(f'choose must be "influence" or "even", not {self.choose!r}')

    @property
    def needs_gram(self) -> bool:  # type: ignore[override]
        return self.choose == "influence"

    def apply(self, model: nn.Module, scope: Scope, edits: Edits) -> dict[str, Any]:
        depth = len(family_of(model).layers)
        count = round(self.share * depth)
        if not 1 <= count < depth:
            raise WeightsError(
                f"share={self.share} of {depth} decoder layers is {count}; choose a share from {1 / depth:.3g} to "
                f"{1 - 1 / depth:.3g}, so that at least one goes and one stays"
            )
        if scope.skip:
            raise WeightsError("skip names layers by numbers that change when layers go; compress in two calls")
        patch = patch_of(model)
        if patch is not None:
            patch.remove()
            edits.when_undone(patch.install)
        attends = [family_of(model).attends(n) for n in range(depth)]
        told: dict[str, Any] = {}
        if self.choose == "even":
            gone = even(count, depth)
            if any(attends) and not any(attends[n] for n in range(depth) if n not in gone):
                raise WeightsError("no layer that attends would be left, and caches count there; choose by influence")
        else:
            influence = influence_of(Walk(model, scope.examples), scope.buckets)
            gone = least(influence, count, attends)
            told = {"influence": [round(float(each), 6) for each in influence]}
        cut(model, [n for n in range(depth) if n not in gone], edits)
        if patch is not None:
            again = Patch(model, patch.method, patch.budget).install()
            edits.when_undone(again.remove)
        return {"removed": gone, **told}


def even(count: int, depth: int) -> list[int]:
    """``count`` of ``depth`` layers, spread evenly; the first one stays."""
    return [n for n in range(depth) if (n + 1) * count // depth > n * count // depth]


def least(influence: Tensor, count: int, attends: list[bool]) -> list[int]:
    """The ``count`` layers of the least ``influence [L]``, in order; of layers that attend the strongest stays, since
    caches count tokens there."""
    rank = influence.clone()
    if any(attends):
        rank[int(influence.masked_fill(~torch.tensor(attends), -torch.inf).argmax())] = torch.inf
    return sorted(rank.argsort(stable=True)[:count].tolist())


def cut(model: nn.Module, keep: list[int], edits: Edits) -> None:
    """Leave only the decoder layers ``keep``, numbered anew for caches, and let the text config say so."""
    family = family_of(model)
    config, depth = family.decoder.config, len(family.layers)
    refuse_shared_keys(config)
    lists = per_layer(config, depth)
    edits.set(family.decoder, "layers", nn.ModuleList([family.layers[n] for n in keep]))
    for index, layer in enumerate(family.decoder.layers):
        for module in layer.modules():
            if "layer_idx" in module.__dict__:
                edits.set(module, "layer_idx", index)
    edits.set(config, "num_hidden_layers", len(keep))
    for name, values in lists.items():
        edits.set(config, name, [values[n] for n in keep])
    _check_config(family.decoder)


def _check_config(decoder: Any) -> None:
    """Raises ``UnsupportedModel`` where the config now describes other layers than ``decoder`` has: it could be saved,
    but not loaded."""
    with torch.device("meta"):
        told = type(decoder)(decoder.config).layers
    here, there = ({name: type(module) for name, module in each.named_modules()} for each in (decoder.layers, told))
    for name in {**here, **there}:
        if here.get(name) is not there.get(name):
            raise UnsupportedModel(
                f"without those layers the config describes another module at layers.{name} than this model has; leave "
                "the layers pass out"
            )


def per_layer(config: Any, depth: int) -> dict[str, list]:
    """The config's lists with an entry a decoder layer. Raises ``UnsupportedModel`` for one that names layers by
    number."""
    lists = {k: v for k, v in vars(config).items() if "layer" in k and isinstance(v, (list, tuple)) and v}
    for name, values in lists.items():
        if len(values) != depth:
            raise UnsupportedModel(
                f"the config's {name} = {list(values)} names some of {depth} layers by number, which would change; "
                "leave the layers pass out"
            )
    return {name: list(values) for name, values in lists.items()}
