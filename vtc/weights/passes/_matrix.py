"""From numbers to the matrix part of a layer: one way for every pass that quantizes or prunes."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vtc.weights.codec import sparsity as layouts
from vtc.weights.codec.terms.floats import Floats
from vtc.weights.codec.terms.ints import Ints
from vtc.weights.passes.base import Candidate


def as_ints(
    layer: Candidate, codes: Tensor, scale: Tensor, zero: Tensor | None, bits: int, group: int, **more: Tensor
) -> Candidate:
    """``layer`` with integers for its matrix: codes ``[O, D]`` in [0, 2^bits), scale and zero ``[O, G]`` (zero None:
    symmetric); ``more``: columns ``[D]``. The layer's mask says which are stored."""
    out, width = layer.weight.shape
    layout = layouts.layout_of(layer.mask, layer.pattern)
    kept = 0 if layer.mask is None else int(layer.mask.sum())
    term = Ints(bits, 0 if group >= width else group, layout, kept, zero is not None, "columns" in more)
    tensors = Ints.pack(codes.to(torch.uint8), bits, layer.mask, layout)
    tensors["scale"] = scale.to(layer.dtype)
    if zero is not None:
        tensors["zero"] = zero.to(torch.uint8)
    return layer.with_matrix(term, tensors | {name: t.to(layer.dtype) for name, t in more.items()})


def as_floats(layer: Candidate, values: Tensor, mask: Tensor, pattern: str | None = None) -> Candidate:
    """``layer`` with the weights ``values [O, D]`` where ``mask`` is True for its matrix."""
    layout = layouts.layout_of(mask, pattern)
    packed, where = layouts.take(values.to(layer.dtype), mask, layout)
    tensors = {"values": packed} | ({} if where is None else {"mask": where})
    pruned = replace(layer, mask=mask, pattern=pattern)
    return pruned.with_matrix(Floats(layout, int(mask.sum())), tensors)
