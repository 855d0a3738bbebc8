"""What a term of a compressed weight is: a frozen description, which goes into ``config.json``, and plain tensors that
stand beside it by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from vtc.weights.codec import sparsity as layouts

Tensors = Mapping[str, Tensor]
Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]


@dataclass(frozen=True)
class Term:
    """One summand of a weight ``[O, D]``."""

    kind: ClassVar[str]

    def shapes(self, out: int, width: int, dtype: torch.dtype) -> Shapes:
        """Shape and dtype of each tensor, for a model of ``dtype``."""
        raise NotImplementedError

    def dense(self, tensors: Tensors, out: int, width: int) -> Tensor:
        """``[O, D]``: the summand, in the dtype of its floating-point tensors."""
        raise NotImplementedError

    def product(self, x: Tensor, tensors: Tensors, out: int, width: int) -> Tensor:
        """``[..., D] -> [..., O]``: inputs times the summand, transposed."""
        return linear(x, self.dense(tensors, out, width).to(x.dtype))

    def flops(self, out: int, width: int) -> int:
        """Multiplications and additions for one token."""
        return 2 * out * width

    def written(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"kind": self.kind, **dataclasses.asdict(self)}


def with_mask(shapes: Shapes, layout: str, out: int, width: int) -> Shapes:
    """``shapes`` and that of the packed mask, where the layout has one."""
    mask = layouts.mask_shape(layout, out, width)
    return shapes if mask is None else {**shapes, "mask": (mask, torch.uint8)}
