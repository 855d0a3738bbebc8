"""Attention of a decoder layer whose keys weigh what they stand for: the fused kernel where it runs, else the model's
own attention function, with the sizes in two more columns of q and k or in its mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtc.engine.attention.masks import KernelMask, LazyMask, ReducingMask, SplitMask
from vtc.engine.rows import put_rows, taken
from vtc.errors import UnsupportedModel
from vtc.kernels.augmented_attention import augment
from vtc.kernels.decode_merged import decode_merged
from vtc.kernels.merged_attention import in_kernel, merged_attention

LONG = 1024  # rows from which two more columns cost less than a mask of rows by keys (docs/performance.md)
WIDEST = 256  # flash attention takes no wider heads


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, run: Callable[..., Any], **kwargs: Any
) -> tuple[Tensor, Any]:
    """In place of an attention function: ``out [B, K, H, d]`` and its weights, if ``run`` gives any.

    q ``[B, H, K, d]``, k and v ``[B, Hk, C, d]``; mask: a ``LazyMask`` of K rows and C columns, or any mask of ``run``,
    the model's own attention function (q, k, v, mask, ...); ``kwargs``: what the layer told it (dropout, softcap, ...).
    """
    if isinstance(mask, SplitMask):
        return _attend_split(q, k, v, mask, scale, run, **kwargs), None
    if not isinstance(mask, ReducingMask):
        return _attend(q, k, v, mask, scale, run, False, **kwargs)
    k, v, subset, gates = mask.reduce(q, k, v, scale)
    out, weights = _attend(q, k, v, subset, scale, run, True, **kwargs)
    return (out if gates is None else gates.through(out, q, scale, kwargs.get("softcap"))), weights


def _attend_split(
    q: Tensor, k: Tensor, v: Tensor, mask: SplitMask, scale: float, run: Callable[..., Any], **kwargs: Any
) -> Tensor:
    one, other = (taken(q, rows.inside) for rows in (mask.first, mask.second))
    vision, _ = _attend(one, *mask.vision(k, v), scale, run, True, **kwargs)
    text, _ = _attend(other, *mask.text(other, k, v, scale), scale, run, True, **kwargs)
    out = vision.new_zeros(q.shape[0], q.shape[2], vision.shape[2] * vision.shape[3])
    for part, rows in ((vision, mask.first), (text, mask.second)):
        out = put_rows(out, part.flatten(2), rows.inside, rows.valid)
    return out.unflatten(2, vision.shape[2:])


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, run: Callable[..., Any], reduces: bool, **kwargs: Any
) -> tuple[Tensor, Any]:
    if not isinstance(mask, LazyMask):
        return run(q, k, v, mask, **kwargs)
    subset = mask
    plain = v.shape == k.shape and kwargs.get("softcap") is None and kwargs.get("s_aux") is None
    seen = _for_kernel(subset, q, k, kwargs) if plain and not kwargs.get("dropout") else None
    if seen is not None:
        if q.shape[2] == 1 and not torch.is_grad_enabled():
            return decode_merged(q, k, v, seen.log_size, scale)[0].transpose(1, 2), None
        return merged_attention(q, k, v, seen.log_size, seen.end, scale)[0].transpose(1, 2), None
    if subset.flash and reduces:
        raise UnsupportedModel(
            "flash attention hides keys by their index, and rows whose keys were left out still attend; "
            'call model.set_attn_implementation("sdpa"), or use a method that drops rows, such as divprune'
        )
    options = {**kwargs, "scaling": scale}
    if not subset.flash and not (plain and q.shape[2] >= LONG and subset.unsized is None):
        return run(q, k, v, subset.mask, **options)
    if subset.flash and (not plain or q.shape[-1] + 8 > WIDEST):
        raise UnsupportedModel(
            f"share=True under flash attention needs plain attention (no cap, no sinks) over heads of at most "
            f"{WIDEST - 8}, and these are {q.shape[-1]} wide; "
            'call model.set_attn_implementation("sdpa") or patch with share=False'
        )
    out, weights = run(*augment(q, k, v, subset.sizes, scale), subset.unsized, **options)
    return out[..., : v.shape[-1]], weights


def _for_kernel(subset: LazyMask, q: Tensor, k: Tensor, kwargs: dict[str, Any]) -> KernelMask | None:
    window = kwargs.get("sliding_window")  # in the mask already, unless it is flash attention's
    if not in_kernel(q, k) or (subset.flash and window is not None and window < subset.total):
        return None
    return subset.seen
