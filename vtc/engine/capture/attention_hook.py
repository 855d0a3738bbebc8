"""Hooks on attention: see q and k of single modules, or compute their attention, without touching the model's config.

A hooked module gets a shallow copy of its config that names the attention function ``vtc``; the model's own config, and
so mask building, is untouched. The function hands q, k and mask to what captures them, then calls the implementation
the original config names at that moment, or whoever took its place.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vtc.engine.attention.masks import Mask
from vtc.errors import UnsupportedModel

ATTRIBUTE = "_vtc_attention_hook"
Capture = Callable[[Tensor, Tensor, Mask, float], None]
Attend = Callable[..., Any]  # (q, k, v, mask, scale, run, **kwargs) -> what an attention function returns


class EndOfLayer(Exception):
    """Raised by what captures, to end a layer's forward once its q and k are known."""


@dataclass
class AttentionHook:
    """What stands at one attention module: its own config, who captures, and who attends in its function's place."""

    config: Any
    capture: list[Capture] = field(default_factory=list)
    attend: Attend | None = None


def hook_attention(
    module: nn.Module, capture: Capture | None = None, attend: Attend | None = None
) -> Callable[[], None]:
    """Call ``capture(q [B, H, n, d], k [B, Hk, m, d], mask, scale)`` at each attention call, and ``attend`` in place of
    the attention function; returns the undo. A call that packs several windows (``cu_seq_lens_q``: flash attention in
    Qwen's towers) is captured window by window.

    Raises ``UnsupportedModel`` when the module does not go through transformers' attention interface.
    """
    undo: Callable[[], None] = lambda: None  # noqa: E731  # the first hook's undo restores the module
    if ATTRIBUTE not in module.__dict__:
        undo = _insert(module)
    here: AttentionHook = module.__dict__[ATTRIBUTE]
    here.attend = attend or here.attend
    here.capture += [capture] if capture else []
    return undo


def uses_interface(module: nn.Module) -> bool:
    """Whether a module attends by transformers' attention interface, which a hook can stand in."""
    return hasattr(getattr(module, "config", None), "_attn_implementation_internal")


def implementation(module: nn.Module) -> str:
    """The attention function a module attends with, hooked or not."""
    config: Any = module.__dict__[ATTRIBUTE].config if ATTRIBUTE in module.__dict__ else module.config
    return config._attn_implementation or "eager"


def _insert(module: nn.Module) -> Callable[[], None]:
    from transformers import AttentionInterface

    config: Any = getattr(module, "config", None)
    if not uses_interface(module):
        raise UnsupportedModel(
            f"{type(module).__name__} does not use transformers' attention interface, so its q and k cannot be seen; "
            "use a method that needs no attention, such as divprune, grid, pool or random"
        )
    AttentionInterface.register("vtc", _attention)
    hooked = copy.copy(config)
    hooked._attn_implementation_internal = "vtc"
    module.__dict__[ATTRIBUTE] = AttentionHook(config)
    module.config = hooked

    def undo() -> None:
        module.config = config
        module.__dict__.pop(ATTRIBUTE, None)

    return undo


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Mask, **kwargs):
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    here: AttentionHook = module.__dict__[ATTRIBUTE]
    scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
    if here.capture:
        with torch.no_grad():
            bounds = kwargs.get("cu_seq_lens_q")
            edges = [0, query.shape[2]] if bounds is None else bounds.tolist()
            for first, last in zip(edges, edges[1:], strict=False):
                window = slice(first, last if bounds is not None else None)
                for capture in here.capture:
                    capture(query.detach()[:, :, window], key.detach()[:, :, window], attention_mask, scale)
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    run: Any = ALL_ATTENTION_FUNCTIONS.get_interface(here.config._attn_implementation, eager)  # type: ignore[arg-type]
    if here.attend is not None:
        return here.attend(query, key, value, attention_mask, scale, partial(run, module), **kwargs)
    return run(module, query, key, value, attention_mask, **kwargs)
