"""A picture's memory: its candidates' keys and values, made once and asked by many questions."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from vtc.engine.kv_cache import RowCacheLayer, cache_bytes, cache_name, row_layer
from vtc.errors import CheckpointError, NotReduced, UnsupportedModel, VTCError
from vtc.files.atomic import write_atomic
from vtc.files.strict import parse_json
from vtc.methods._spelling import spell
from vtc.models.base import Weakly
from vtc.models.inspection import unwrapped
from vtc.patching.api import patch_of
from vtc.patching.memory_file import bounds_of, fill, tensors_of, weights_hash
from vtc.patching.patch import Patch
from vtc.version import __version__


class PictureMemory:
    """What a patched model keeps of one prompt that ends with its pictures, from ``vtc.remember`` or ``vtc.recall``.

    ``ids [1, N]``: the prompt; of its rows the cache holds the first ``length``, up to the last vision token.
    ``bytes``: of all keys and values.
    """

    model = Weakly()

    def __init__(self, model: nn.Module, ids: Tensor, length: int, cache: DynamicCache, deltas: Tensor | None):
        patch = freezing_patch(model)
        self.model, self.ids, self.length = unwrapped(model), ids, length
        self.method, self.budget = spell(patch.method), str(patch.budget)
        self._cache, self._deltas = cache, deltas

    def __repr__(self) -> str:
        held = f"{self.ids.shape[1]} tokens, {self.bytes:,} bytes"
        return f"<{type(self).__name__}: {held}, {self.method} at {self.budget}>"

    @property
    def bytes(self) -> int:
        return cache_bytes(self._cache)

    def prompt(self, ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Any]:
        """What ``generate`` takes to ask these questions, ``ids [B, T]`` (left-padded where ``attention_mask [B, T]``
        is 0): they stand behind the remembered prompt, and each chooses its own keys. The memory stays as it is.

        Raises ``NotReduced`` where the model is patched otherwise than when it was remembered.
        """
        if ids.dim() != 2 or ids.shape[1] == 0:
            raise ValueError(f"question ids are {list(ids.shape)}; give [B, T], T of at least one token")
        self._check_patch()
        batch = ids.shape[0]
        own = self.ids.to(ids.device).expand(batch, -1)
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask
        cache = copied(self._cache)
        if batch > 1:
            cache.batch_repeat_interleave(batch)
        if self._deltas is not None:  # the model keeps these beside its cache, as its own prefill would have left them
            unwrapped(self.model).base_model.rope_deltas = self._deltas.expand(batch, -1)
        return {
            "input_ids": torch.cat([own, ids], dim=1),
            "attention_mask": torch.cat([torch.ones_like(own), mask], dim=1),
            cache_name(self.model): cache,
        }

    def _check_patch(self) -> None:
        patch = patch_of(self.model)
        now = "none" if patch is None else f"{spell(patch.method)} at {patch.budget}"
        if now != f"{self.method} at {self.budget}":
            raise NotReduced(
                f"this picture was remembered with {self.method} at {self.budget} and the model's patch is {now}; "
                "patch it as it was, or remember the picture again"
            )

    def save(self, path: str | os.PathLike) -> Path:
        """Write it to one safetensors file, with a hash of the model's weights. Raises ``VTCError``."""
        from safetensors.torch import save_file

        self._check_patch()
        tensors = {"ids": self.ids} | ({} if self._deltas is None else {"rope_deltas": self._deltas})
        layers = cast(list[RowCacheLayer], self._cache.layers)
        for index, layer in enumerate(layers):
            tensors |= {f"{index}.{name}": t for name, t in tensors_of(layer).items()}
        about = {"model": weights_hash(self.model), "method": self.method, "budget": self.budget, "vtc": __version__}
        said = {**about, "length": self.length, "layers": [bounds_of(layer) for layer in layers]}
        held = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        file = Path(path)
        write_atomic(file, lambda temporary: save_file(held, temporary, metadata={"vtc": json.dumps(said)}))
        return file


def remember(model: nn.Module, inputs: Mapping[str, Any] | None = None, **more: Any) -> PictureMemory:
    """Keep a picture's candidates, keys and values of every layer, for any number of questions.

    inputs: what the processor gave for one prompt with its pictures (or the same as keywords); words behind the
    pictures run with each question. Asking is ``model.generate(**memory.prompt(ids))``, equal to the same words in one
    prompt. The model is patched with a method that freezes, such as the default.

    Raises ``VTCError`` for a model that is patched with no such method, and ``UnsupportedModel`` where what is kept
    would depend on the question: a method that looks at it, words between vision tokens, a model that reads ahead.
    """
    patch, given = freezing_patch(model), {**(inputs or {}), **more}
    check_independent(patch)
    ids = given.get("input_ids")
    if ids is None or ids.dim() != 2 or ids.shape[0] != 1:
        shape = "none" if ids is None else list(ids.shape)
        raise ValueError(f"input_ids are {shape}; give those of one prompt, [1, N]")
    if given.get("attention_mask") is not None and not bool(given["attention_mask"].all()):
        raise ValueError("the prompt has padding; give one prompt as it is")
    vision = torch.isin(ids[0].cpu(), torch.tensor(list(patch.family.token_ids.values()))).nonzero()
    if not len(vision):
        raise ValueError("the prompt has no picture; give what the processor made of a picture and its prompt")
    length = int(vision.max()) + 1
    cut = {name: value[..., :length] if by_token(value, ids.shape[1], name) else value for name, value in given.items()}
    cache = DynamicCache(config=patch.family.decoder.config)
    with patch.unasked(), torch.no_grad():
        model(**{**cut, cache_name(patch.model): cache, "use_cache": True})
    return PictureMemory(model, ids, length, cache, getattr(patch.family.base, "rope_deltas", None))


def recall(model: nn.Module, path: str | os.PathLike) -> PictureMemory:
    """The picture's memory that ``save`` wrote. Raises ``CheckpointError`` for a file that is none, or of another model
    or patch."""
    from safetensors import SafetensorError, safe_open

    patch, file = freezing_patch(model), Path(path)
    device = next(patch.family.layers.parameters()).device
    try:
        with safe_open(file, "pt", device=str(device)) as opened:
            said = parse_json((opened.metadata() or {}).get("vtc", "").encode(), str(file))
            held = list(opened.keys())
            tensors = {name: opened.get_tensor(name) for name in held}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is no picture's memory ({error}); give a file that memory.save wrote") from None
    check_same(said, patch, file)
    cache = DynamicCache(config=patch.family.decoder.config)
    try:
        length, layers = int(said["length"]), said["layers"]
        if len(layers) != len(patch.family.layers):
            raise ValueError(f"it has {len(layers)} layers")
        for index, bounds in enumerate(layers):
            lead = f"{index}."
            own = {name.removeprefix(lead): t for name, t in tensors.items() if name.startswith(lead)}
            fill(cast(RowCacheLayer, row_layer(cache, index)), own, length, bounds)
        return PictureMemory(model, tensors["ids"], length, cache, tensors.get("rope_deltas"))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise CheckpointError(f"{file} is damaged ({error!r}); remember the picture again") from None


def freezing_patch(model: nn.Module) -> Patch:
    """Raises ``VTCError`` for a model whose patch has no candidates to keep."""
    patch = patch_of(model)
    if patch is None or not isinstance(patch, Patch) or not patch.method.freezes:
        now = "not patched" if patch is None else f"patched with {spell(patch.method)}"
        raise VTCError(
            f"this model is {now}, and a picture is remembered where its tokens stop and each question chooses of "
            "them; call vtc.patch(model), or patch it with frozen, alone or behind another method"
        )
    return patch


def check_independent(patch: Patch) -> None:
    """Raises ``UnsupportedModel`` where a picture's tokens depend on the question behind it."""
    method = patch.method
    asking = [signal for n in range(len(method.stages())) for signal in method.signals(n) if signal.asks]
    if asking:
        raise UnsupportedModel(
            f"{spell(method)} looks at the question ({asking[0].words()}) before it cuts, so what is kept of a picture "
            "depends on it; use a first cut that does not, such as divprune+share"
        )
    if patch.family.reads_ahead:
        raise UnsupportedModel(
            f"the vision tokens of {type(patch.model).__name__} see the words behind them, so no picture stands alone; "
            "ask each question from the start"
        )


def by_token(value: Any, length: int, name: str) -> bool:
    """Whether an input has an entry for each token of the prompt."""
    return isinstance(value, Tensor) and value.shape[-1] == length and (name == "position_ids" or value.dim() == 2)


def copied(cache: DynamicCache) -> DynamicCache:
    """A cache of the same tensors, none of which is ever written to."""
    out = copy.copy(cache)
    out.layers = [copy.copy(layer) for layer in cache.layers]
    return out


def check_same(said: Mapping[str, Any], patch: Patch, file: Path) -> None:
    """Raises ``CheckpointError`` for a memory of another model or patch."""
    here = {"method": spell(patch.method), "budget": str(patch.budget), "model": weights_hash(patch.model)}
    for name, value in here.items():
        if said.get(name) != value:
            raise CheckpointError(
                f"{file} was remembered with another {name} ({said.get(name)}, here {value}); load the model and patch "
                "it as it was, or remember the picture again"
            )
