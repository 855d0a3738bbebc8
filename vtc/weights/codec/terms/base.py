"""What a term of a compressed weight is: a frozen description, which goes into ``config.json``, and plain tensors that
stand beside it by name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from vtc.errors import CheckpointError
from vtc.weights.codec import sparsity as layouts

WIDEST = 4096  # inputs of a group in a smaller matrix
Tensors = Mapping[str, Tensor]
Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]


@dataclass(frozen=True)
class Term:
    """One summand of a weight ``[O, D]``."""

    kind: ClassVar[str]

    def shapes(self, out: int, width: int, dtype: torch.dtype) -> Shapes:
        """Shape and dtype of each tensor, for a model of ``dtype``."""
        raise NotImplementedError

    def check(self, out: int, width: int) -> None:
        """Raises ``CheckpointError`` for numbers that no pass gives a matrix ``[O, D]``, before tensors of that size
        are made."""
        bits = [self.bits] if hasattr(self, "bits") else [bits for bits, _ in getattr(self, "bands", ())]
        if any(not 1 <= each <= 8 for each in bits):
            raise CheckpointError(f"{self} has codes of other than 1 to 8 bits; save again")
        if not 0 <= getattr(self, "group", 0) <= max(width, WIDEST):
            raise CheckpointError(f"{self} has groups of more than {max(width, WIDEST)} inputs; save again")
        for name, (shape, _) in self.shapes(out, width, torch.float32).items():
            if min(shape, default=0) < 0 or math.prod(shape) > 4 * (out + width + 256) ** 2:
                raise CheckpointError(
                    f"{self} asks for {name} {list(shape)}, too large for [{out}, {width}]; save again"
                )

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
