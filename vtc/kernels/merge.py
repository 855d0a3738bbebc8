"""The merge every reduction ends in: tokens of a slot become one.

out[s] = sum over the tokens n of slot s, in order, of  share_n * x_n
share_n = weight_n,  or size_n / (sum of the sizes in its slot)
"""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.kernels.dispatch import device_of, use_triton


def merge(features: Tensor, slot: Tensor, weight: Tensor | None, size: Tensor, slots: int) -> Tensor:
    """``[I, K, D]``: the value of each of the ``slots`` slots of each picture.

    features ``[I, N, D]``; slot ``[I, N]`` int, -1 = dropped; weight ``[I, N]``: a slot's value is the weighted SUM of
    its tokens; None = their mean weighted by size ``[I, N]``. Summed in float32 (float64 stays) in a fixed order, so
    the same tokens give the same bits on every run; differentiable in features and weight. A slot of one token of
    weight 1 (or no weight) keeps its value bit for bit; a slot without tokens is 0.
    """
    return _merge(features, slot, size.detach() if weight is None else weight, slots, weight is None)[0]


@torch.library.custom_op("vtc::merge", mutates_args=())
def _merge(features: Tensor, slot: Tensor, weight: Tensor, slots: int, mean: bool) -> tuple[Tensor, Tensor]:
    """The merged features ``[I, K, D]``, and the share ``[I, N]`` with which each token is in (0 when dropped)."""
    if use_triton(features):
        from vtc.kernels import merge_triton as kernel

        with device_of(features):
            return kernel.merge(features, slot, weight, slots, mean)
    return reference(features, slot, weight, slots, mean)


@_merge.register_fake
def _(features, slot, weight, slots, mean):
    pictures, tokens, width = features.shape
    return features.new_empty(pictures, slots, width), features.new_empty(pictures, tokens, dtype=_wide(features))


def _wide(t: Tensor) -> torch.dtype:
    return torch.float64 if t.dtype == torch.float64 else torch.float32


def reference(features: Tensor, slot: Tensor, weight: Tensor, slots: int, mean: bool) -> tuple[Tensor, Tensor]:
    """The definition in torch."""
    pictures, _, width = features.shape
    dtype = _wide(features)
    place = slot.where(slot >= 0, slots) + (slots + 1) * torch.arange(pictures, device=slot.device)[:, None]
    place = place.flatten()  # a spare slot at each picture's end takes what is dropped, NaN and all
    share = weight.to(dtype)
    if mean:
        total = _add(share.flatten(), place, pictures * (slots + 1))
        share = share / total[place].view_as(share)  # exactly 1 for a token alone
    rows = features.to(dtype) * share[..., None]
    out = _add(rows.flatten(0, 1), place, pictures * (slots + 1))
    out = out.view(pictures, slots + 1, width)[:, :slots].to(features.dtype)
    return out.contiguous(), share.where(slot >= 0, 0)


def _add(rows: Tensor, place: Tensor, slots: int) -> Tensor:
    """``[slots, ...]``: sums of ``rows [M, ...]`` by ``place [M]``, in the order of the rows on every device."""
    out = rows.new_full((slots, *rows.shape[1:]), -0.0)  # -0.0 + x is x for every x, 0.0 + -0.0 is not
    if rows.is_cuda:
        return out.index_put((place,), rows, accumulate=True)  # sorts; index_add would race
    return out.index_add(0, place, rows)


@torch.library.custom_op("vtc::merge_backward", mutates_args=())
def _backward(grad: Tensor, features: Tensor, slot: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """``share_n * grad[slot_n]`` ``[I, N, D]``, the gradient of the features, and ``x_n . grad[slot_n]`` ``[I, N]``,
    that of the share; 0 for what was dropped."""
    if use_triton(features):
        from vtc.kernels import merge_triton as kernel

        with device_of(features):
            return kernel.backward(grad, features, slot, share)
    return reference_backward(grad, features, slot, share)


@_backward.register_fake
def _(grad, features, slot, share):
    return features.new_empty(features.shape), share.new_empty(share.shape)


def reference_backward(grad: Tensor, features: Tensor, slot: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """The definition in torch."""
    kept = (slot >= 0)[..., None]
    if grad.shape[1] == 0:
        return torch.zeros_like(features, memory_format=torch.contiguous_format), torch.zeros_like(share)
    index = slot.clamp(min=0)[..., None].expand(features.shape)
    own = grad.gather(1, index).to(share.dtype).masked_fill(~kept, 0)
    by_share = (own * features.to(share.dtype)).masked_fill(~kept, 0).sum(2)
    return (own * share[..., None]).masked_fill(~kept, 0).to(features.dtype), by_share


def _remember(ctx, inputs, output):
    features, slot, weight, _, ctx.mean = inputs
    ctx.kind = weight.dtype
    ctx.save_for_backward(features, slot, output[1])


def _gradient(ctx, grad, _):
    by_features, by_share = _backward(grad, *ctx.saved_tensors)
    return by_features, None, None if ctx.mean else by_share.to(ctx.kind), None, None


_merge.register_autograd(_gradient, setup_context=_remember)
