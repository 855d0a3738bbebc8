"""Taps on attention: hear q and k of single modules, or compute their attention, without touching the model's config.

A tapped module gets a shallow copy of its config that names the attention function ``vtc``; the model's own config, and
so mask building, is untouched. The function hands q, k and mask to those who listen, then calls the implementation the
original config names at that moment, or whoever took its place.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vtc.engine.masks import Subset
from vtc.errors import UnsupportedModel
from vtc.kernels.gather import gather_rows
from vtc.kernels.merged_attention import causal_end
from vtc.kernels.received_attention import received_attention

ATTRIBUTE = "_vtc_tap"
Mask = Tensor | Subset | None
Listen = Callable[[Tensor, Tensor, Mask, float], None]
Attend = Callable[..., Any]  # (q, k, v, mask, scale, run, **kwargs) -> what an attention function returns


class Stop(Exception):
    """Raised by a tap to end a layer's forward once q and k are known."""


@dataclass
class Tap:
    """What stands at one attention module: its own config, who listens, and who attends in its function's place."""

    config: Any
    listen: list[Listen] = field(default_factory=list)
    attend: Attend | None = None


def tap(module: nn.Module, listen: Listen | None = None, attend: Attend | None = None) -> Callable[[], None]:
    """Call ``listen(q [B, H, n, d], k [B, Hk, m, d], mask, scale)`` at each attention call, and ``attend`` in place of
    the attention function; returns the undo. A call that packs several windows (``cu_seq_lens_q``: flash attention in
    Qwen's towers) is heard window by window.

    Raises ``UnsupportedModel`` when the module does not go through transformers' attention interface.
    """
    undo: Callable[[], None] = lambda: None  # noqa: E731  # the first tap's undo restores the module
    if ATTRIBUTE not in module.__dict__:
        undo = _insert(module)
    here: Tap = module.__dict__[ATTRIBUTE]
    here.attend = attend or here.attend
    here.listen += [listen] if listen else []
    return undo


def implementation(module: nn.Module) -> str:
    """The attention function a module attends with, tapped or not."""
    config: Any = module.__dict__[ATTRIBUTE].config if ATTRIBUTE in module.__dict__ else module.config
    return config._attn_implementation or "eager"


def _insert(module: nn.Module) -> Callable[[], None]:
    from transformers import AttentionInterface

    config = getattr(module, "config", None)
    if config is None or not hasattr(config, "_attn_implementation_internal"):
        raise UnsupportedModel(
            f"{type(module).__name__} does not use transformers' attention interface, so its q and k cannot be seen; "
            "use a method that needs no attention, such as divprune, grid, pool or random"
        )
    AttentionInterface.register("vtc", _attention)
    tapped = copy.copy(config)
    tapped._attn_implementation_internal = "vtc"
    module.__dict__[ATTRIBUTE] = Tap(config)
    module.config = tapped

    def undo() -> None:
        module.config = config
        module.__dict__.pop(ATTRIBUTE, None)

    return undo


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Mask, **kwargs):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    here: Tap = module.__dict__[ATTRIBUTE]
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    if here.listen:
        with torch.no_grad():
            bounds = kwargs.get("cu_seq_lens_q")
            edges = [0, query.shape[2]] if bounds is None else bounds.tolist()
            for first, last in zip(edges, edges[1:], strict=False):
                window = slice(first, last if bounds is not None else None)
                for listen in here.listen:
                    listen(query.detach()[:, :, window], key.detach()[:, :, window], attention_mask, scale)
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    run: Any = ALL_ATTENTION_FUNCTIONS.get_interface(here.config._attn_implementation, eager)  # type: ignore[arg-type]
    if here.attend is not None:
        return here.attend(query, key, value, attention_mask, scale, partial(run, module), **kwargs)
    return run(module, query, key, value, attention_mask, **kwargs)


def tower_received(q: Tensor, k: Tensor, mask: Tensor | None, cls: int, scale: float) -> Tensor:
    """``[T, n]``: attention each tower token receives from the CLS row (``cls > 0``), summed over heads; without a CLS
    token the mean over the rows that see it of what it receives, summed over heads alike. ``mask`` (``[T, 1, n, n]``,
    bool or additive) parts pictures that one call packs side by side."""
    if cls:
        return received_attention(q[:, :, :1], k, scale=scale).sum(dim=1)
    parts = (
        [_windows(one) for one in mask.expand(q.shape[0], -1, -1, -1)] if mask is not None and mask.dim() == 4 else None
    )
    if parts is None:
        return received_attention(q, k, scale=scale).sum(dim=1) / q.shape[2]
    rows = []
    for t, windows in enumerate(parts):
        spans = [(q[t : t + 1, :, w], k[t : t + 1, :, w]) for w in windows]
        rows.append(torch.cat([received_attention(a, b, scale=scale).sum(dim=1)[0] / a.shape[2] for a, b in spans]))
    return torch.stack(rows)


def _windows(mask: Tensor) -> list[slice]:
    """The runs of tokens that see each other in ``mask [1, n, n]``: cut where a token does not see the one before."""
    seen = mask[0] if mask.dtype == torch.bool else mask[0] > torch.finfo(mask.dtype).min / 2
    edges = [0, *((~seen.diagonal(-1)).nonzero()[:, 0] + 1).tolist(), seen.shape[0]]
    return [slice(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def row_attention(q: Tensor, k: Tensor, row: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """``[B, H, m]``: attention from row ``row[b]`` of ``q [B, H, n, d]`` to every key of ``k [B, Hk, m, d]``, in
    float32. bias ``[B, m]`` (``row_bias``): what the row's logits get."""
    return received_attention(q, k, row[:, None], log_size=bias, scale=scale)


def row_bias(mask: Mask, row: Tensor, rows: int, keys: int) -> Tensor:
    """``[B, R, keys]``: what each row of ``row [B, R]``, of ``rows``, adds to its logits, -inf where it sees nothing.

    mask is what an attention function gets: None (causal by index, the last query sees the last key), ``[B, keys]`` or
    ``[B or 1, 1, rows, keys]``, bool or additive, or a ``Subset``.
    """
    if isinstance(mask, Subset):
        some = replace(mask.at(row), backend="sdpa")
        if some.seen is None:
            return row_bias(some.mask, torch.arange(row.shape[1], device=row.device).expand_as(row), row.shape[1], keys)
        by_place = some.given is None or some.given.dim() == 2  # one row alone is not always the last
        behind = causal_end(some.place, some.columns.index) if by_place else some.seen.end
        end = keys if behind is None else behind[..., None]
        bias = some.seen.log_size[:, None].expand(-1, row.shape[1], -1)
        return bias.masked_fill(torch.arange(keys, device=row.device) >= end, -torch.inf)
    if mask is not None and mask.dim() == 4:
        seen = gather_rows(mask[:, 0], row)
    else:
        seen = torch.arange(keys, device=row.device) <= (row + keys - rows)[..., None]
        seen = seen if mask is None else seen & mask.bool()[:, None]
    if seen.dtype != torch.bool:
        return seen.float()
    return torch.zeros(seen.shape, device=row.device).masked_fill(~seen, -torch.inf)
