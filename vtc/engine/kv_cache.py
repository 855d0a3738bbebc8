"""A KV-cache layer that stores few rows and reports many: generate() and mask building never see a short sequence."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from vtc.engine.memory import Memory
from vtc.engine.rows import Columns
from vtc.errors import NotReduced, UnsupportedModel

CACHE_NAMES = {"cache", "past_key_values"}  # since transformers 5.24, and before


class RowCacheLayer(DynamicLayer):
    """Keys and values of the kept rows only; ``get_seq_length`` is the logical length.

    What was kept of the reduced prompts stands in ``kept`` (logical columns, validity, log sizes); everything since is
    contiguous and only counted (``tail``), so a decode step costs no bookkeeping tensors. ``memory``: candidates that
    are no keys now, where a later turn may choose anew.
    """

    def __init__(self, sliding_window: int | None = None):
        super().__init__()
        self.is_sliding = sliding_window is not None
        self.sliding_window = sliding_window
        self.record_past = False
        self._forget()

    keys: Tensor  # None until the first update, as in every cache layer
    values: Tensor

    def _forget(self) -> None:
        self.kept: Columns | None = None
        self.memory: Memory | None = None
        self.tail = 0
        self.logical = 0
        self.expected: tuple[Columns | None, int, Columns | None] | None = None

    @classmethod
    def adopt(cls, layer: DynamicLayer) -> RowCacheLayer:
        """Continue a plain dynamic layer (empty, or holding an unreduced first turn)."""
        own = cls(layer.sliding_window if isinstance(layer, DynamicSlidingWindowLayer) else None)
        own.record_past = getattr(layer, "record_past", False)
        if layer.get_seq_length() > 0:
            keys, values = cast(Tensor, layer.keys), cast(Tensor, layer.values)
            own.lazy_initialization(keys, values)
            own.keys, own.values = keys, values
            own.tail, own.logical = keys.shape[-2], layer.get_seq_length()
        return own

    def expect(self, columns: Columns | None, length: int, prompt: Columns | None = None) -> None:
        """The next ``update`` brings these columns (None: all), out of a forward of ``length`` logical rows.
        ``prompt``: those of them that ``crop`` may not take back, all but some of the last (None: all)."""
        self.expected = (columns, length, prompt)

    def columns(self, new: Columns | int, batch: int, device: torch.device) -> Columns:
        """The columns of all stored keys followed by ``new`` ones (a count means: contiguous)."""
        extra = new if isinstance(new, int) else 0
        first = self.logical - self.tail
        tail = torch.arange(first, self.logical + extra, device=device).expand(batch, -1)
        parts = [c for c in (self.kept, Columns(tail) if tail.shape[1] else None) if c is not None]
        parts += [] if isinstance(new, int) else [new]
        out = parts[0]
        for part in parts[1:]:
            out = out.then(part)
        return out

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.expected is None:
            raise NotReduced(
                "this cache holds a reduced prompt, and a layer without the patch was about to read it: its columns "
                "and sizes would be lost; decode while the patch is on, or start a new cache"
            )
        (columns, length, prompt), self.expected = self.expected, None
        if columns is None:
            self.tail += length
        else:
            prompt = columns if prompt is None else prompt
            self.kept = self.columns(prompt, key_states.shape[0], key_states.device)
            self.tail = columns.index.shape[1] - prompt.index.shape[1]
        self.logical += length
        keys = torch.cat([self.keys, key_states], dim=-2)
        values = torch.cat([self.values, value_states], dim=-2)
        self.keys, self.values = keys, values
        if self.sliding_window is not None and not self.record_past:
            self._leave(keys.shape[-2] - self.sliding_window + 1)
        return keys, values

    def hold(
        self, columns: Columns, keys: Tensor, values: Tensor, behind: int = 0, memory: Memory | None = None
    ) -> None:
        """Store these in place of all that is stored: a forward's keys were reduced after ``update`` brought them.
        ``crop`` may take the last ``behind`` back."""
        self.kept, self.tail = columns.without_last(behind), behind
        self.keys, self.values, self.memory = keys, values, memory
        if self.sliding_window is not None and not self.record_past:
            self._leave(keys.shape[-2] - self.sliding_window + 1)

    def _leave(self, count: int) -> None:
        """Forget the ``count`` oldest rows: at most window - 1 columns are ever looked back at, and rows <= columns."""
        if count <= 0 or self.memory is not None:  # whose keys are chosen anew; masks hide what the window has left
            return
        self.keys, self.values = self.keys[:, :, count:], self.values[:, :, count:]
        prefix = 0 if self.kept is None else self.kept.index.shape[1]
        if self.kept is not None:
            self.kept = self.kept.each(lambda t: t[:, count:]) if count < prefix else None
        self.tail -= max(count - prefix, 0)

    def activate_past_recording(self) -> None:
        self.record_past = True

    def get_seq_length(self) -> int:
        return self.logical

    def get_mask_sizes(self, query_length) -> tuple[int, int]:
        return self.logical + int(query_length), 0

    def reset(self) -> None:
        super().reset()
        self._forget()

    def _reindex(self, change) -> None:
        if self.kept is not None:
            self.kept = self.kept.each(change)
        if self.memory is not None:
            self.memory = self.memory.each(change)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[arg-type]
        self._reindex(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._reindex(lambda t: t.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._reindex(lambda t: t[indices])

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest tokens (a positive number, as older releases pass, is the length to keep)."""
        remove = self.logical - tokens_to_remove if tokens_to_remove > 0 else -tokens_to_remove
        if remove > self.tail:
            raise ValueError(
                f"cannot crop {remove} tokens: only the {self.tail} after the last reduced prompt can go; start a new "
                "cache to go further back (a loop of your own that verifies drafted tokens in the prompt's forward "
                "says where the prompt ends: vtc.patching.api.prompts_end_at)"
            )
        if remove > 0:
            self.keys, self.values = self.keys[..., :-remove, :], self.values[..., :-remove, :]
            self.tail, self.logical = self.tail - remove, self.logical - remove
        if self.sliding_window is not None:
            self._leave(self.keys.shape[-2] - self.sliding_window + 1)


def cache_given(kwargs: Mapping[str, Any]) -> Cache | None:
    """The cache among a forward's arguments."""
    cache = kwargs.get("cache")
    return kwargs.get("past_key_values") if cache is None else cache


def cache_name(model: nn.Module) -> str:
    """What the model's forward calls its cache."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"


def check_layers(layers: Iterable[nn.Module]) -> None:
    """Raise ``UnsupportedModel`` for decoder layers that are handed their cache under a name not known here: they would
    compute something else without an error."""
    for kind in {type(layer) for layer in layers}:
        if not CACHE_NAMES & set(inspect.signature(kind.forward).parameters):
            raise UnsupportedModel(
                f"{kind.__name__}.forward takes no {' or '.join(sorted(CACHE_NAMES))}, so its KV cache cannot be "
                f"followed (transformers {transformers.__version__}); use a model of a version that vtc was tested with"
            )


def without_cache(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments, and no cache."""
    return {name: value for name, value in kwargs.items() if name not in CACHE_NAMES}


def cache_in(output: Any) -> Cache | None:
    """The cache that a forward returned, under either name or in a tuple."""
    if isinstance(output, tuple):
        return next((o for o in output if hasattr(o, "get_seq_length")), None)
    return getattr(output, "cache" if hasattr(output, "cache") else "past_key_values", None)


def plain(cache: Cache | None) -> Cache | None:
    """The decoder's own cache (an encoder-decoder cache holds it inside)."""
    return getattr(cache, "self_attention_cache", cache)


def stored(cache: Cache | None, index: int) -> RowCacheLayer | None:
    """Layer ``index`` of the cache if it stores a subset of rows."""
    cache = plain(cache)
    if cache is None or len(cache.layers) <= index:
        return None
    layer = cache.layers[index]
    return layer if isinstance(layer, RowCacheLayer) else None


def row_layer(cache: Cache | None, index: int) -> RowCacheLayer | None:
    """Layer ``index`` of a dynamic cache as a ``RowCacheLayer``, replaced in place; None where there is no cache or the
    layer holds no keys (recurrent layers). Raises ``UnsupportedModel`` for static, quantized and offloaded caches."""
    cache = plain(cache)
    if cache is None:
        return None
    if not isinstance(cache, DynamicCache) or getattr(cache, "offloading", False):
        raise UnsupportedModel(
            f"a {type(cache).__name__} cannot store a reduced prompt; use a DynamicCache (the default of generate())"
        )
    while len(cache.layers) <= index:
        cache.layers.append((getattr(cache, "layer_class_to_replicate", None) or DynamicLayer)())
    layer = cache.layers[index]
    if isinstance(layer, RowCacheLayer):
        return layer
    if "Linear" in type(layer).__name__:  # recurrent state: nothing to size
        return None
    if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
        raise UnsupportedModel(
            f"a cache layer of type {type(layer).__name__} cannot store a reduced prompt; use a plain DynamicCache"
        )
    own = cache.layers[index] = RowCacheLayer.adopt(cast(DynamicLayer, layer))
    return own


def snapshot(cache: Cache | None, index: int) -> RowCacheLayer | None:
    """What layer ``index`` holds now, to be looked at only; None where it holds nothing."""
    cache = plain(cache)
    if cache is None or len(cache.layers) <= index or held_rows(cache, index) == 0:
        return None
    layer = cache.layers[index]
    return layer if isinstance(layer, RowCacheLayer) else RowCacheLayer.adopt(cast(DynamicLayer, layer))


def check_cache(cache: Cache | None) -> None:
    """Raise ``UnsupportedModel`` at once for caches that could never store a reduced prompt."""
    cache = plain(cache)
    if cache is None:
        return
    if not isinstance(cache, DynamicCache) or getattr(cache, "offloading", False):
        row_layer(cache, 0)


def held_rows(cache: Cache | None, index: int) -> int:
    """How many keys layer ``index`` of the cache holds."""
    cache = plain(cache)
    if cache is None or len(cache.layers) <= index:
        return 0
    keys = getattr(cache.layers[index], "keys", None)
    return keys.shape[-2] if isinstance(keys, Tensor) and keys.dim() == 4 else 0


def logical_length(cache: Cache | None) -> int:
    """How many tokens the cache stands for, those that left it included."""
    cache = plain(cache)
    return 0 if cache is None or not cache.layers else int(cache.get_seq_length())


def remembers(cache: Cache | None) -> bool:
    """Whether some layer holds candidates of which a later turn may choose."""
    cache = plain(cache)
    return cache is not None and any(getattr(layer, "memory", None) is not None for layer in cache.layers)


def cache_bytes(cache: Cache | None) -> int:
    """Bytes of all keys and values the cache really holds."""
    cache = plain(cache)
    layers: list[Any] = [] if cache is None else cache.layers
    memories = [layer.memory.others for layer in layers if getattr(layer, "memory", None) is not None]
    held = [getattr(one, name, None) for one in (*layers, *memories) for name in ("keys", "values")]
    return sum(t.numel() * t.element_size() for t in held if isinstance(t, Tensor))
