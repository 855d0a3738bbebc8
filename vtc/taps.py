"""Listening in on attention: q and k of single modules, while the model's own attention kernel runs unchanged.

A tapped module gets a shallow copy of its config that names the attention function ``vtc``; the model's own config, and
so mask building, is untouched. The function hands q, k and mask to the tap, then calls the implementation the original
config names at that moment.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vtc.errors import UnsupportedModel
from vtc.kernels.received_attention import received_attention

ATTRIBUTE = "_vtc_tap"
Tap = Callable[[Tensor, Tensor, "Tensor | None", float], None]


class Stop(Exception):
    """Raised by a tap to end a layer's forward once q and k are known."""


def tap(module: nn.Module, listen: Tap) -> Callable[[], None]:
    """Call ``listen(q [B, H, n, d], k [B, Hk, m, d], mask, scale)`` at each attention call; returns the undo. A call
    that packs several windows (``cu_seq_lens_q``: flash attention in Qwen's towers) is heard window by window.

    Raises ``UnsupportedModel`` when the module does not go through transformers' attention interface.
    """
    from transformers import AttentionInterface

    config = getattr(module, "config", None)
    if config is None or not hasattr(config, "_attn_implementation_internal"):
        raise UnsupportedModel(
            f"{type(module).__name__} does not use transformers' attention interface, so its q and k cannot be seen; "
            "use a method that needs no attention, such as divprune, grid, pool or random"
        )
    if ATTRIBUTE in module.__dict__:
        first_listen, original = module.__dict__[ATTRIBUTE]

        def both(*call):
            first_listen(*call)
            listen(*call)

        module.__dict__[ATTRIBUTE] = (both, original)
        return lambda: None  # the first tap's undo restores the module
    AttentionInterface.register("vtc", _attention)
    tapped = copy.copy(config)
    tapped._attn_implementation_internal = "vtc"
    module.__dict__[ATTRIBUTE] = (listen, config)
    module.config = tapped

    def undo() -> None:
        module.config = config
        module.__dict__.pop(ATTRIBUTE, None)

    return undo


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    listen, config = module.__dict__[ATTRIBUTE]
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    with torch.no_grad():
        bounds = kwargs.get("cu_seq_lens_q")
        edges = [0, query.shape[2]] if bounds is None else bounds.tolist()
        for first, last in zip(edges, edges[1:], strict=False):
            window = slice(first, last if bounds is not None else None)
            listen(query.detach()[:, :, window], key.detach()[:, :, window], attention_mask, scale)
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    run: Any = ALL_ATTENTION_FUNCTIONS.get_interface(config._attn_implementation, eager)  # type: ignore[arg-type]
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


def row_attention(q: Tensor, k: Tensor, row: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """``[B, m]``: attention from row ``row[b]`` of ``q [B, H, n, d]`` to every key, mean over heads, in float32.

    mask is what the attention function got: None (causal by index, the last query sees the last key), ``[B, m]`` or
    ``[B or 1, 1, n, m]``, bool or additive.
    """
    batch, heads, length, dim = q.shape
    keys, many = k.shape[1], k.shape[2]
    one = q.gather(2, row[:, None, None, None].expand(batch, heads, 1, dim)).view(batch, keys, heads // keys, dim)
    logits = (one.float() @ k.float().transpose(2, 3)).mul_(scale).view(batch, heads, many)
    if mask is None:
        bias = torch.arange(many, device=q.device) <= (row + many - length)[:, None]
    elif mask.dim() == 2:
        bias = mask.bool() & (torch.arange(many, device=q.device) <= (row + many - length)[:, None])
    else:
        index = row[:, None, None, None].expand(batch, mask.shape[1], 1, mask.shape[3])
        bias = mask.expand(batch, -1, -1, -1).gather(2, index)[:, 0, 0]
    bias = (
        torch.zeros_like(bias, dtype=torch.float32).masked_fill(~bias, -torch.inf) if bias.dtype == torch.bool else bias
    )
    return (logits + bias[:, None].float()).softmax(dim=-1).mean(dim=1)
