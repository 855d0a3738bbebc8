"""A device without float64, such as MPS, pretended on the CPU."""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vtc.kernels.float64 import in_float64
from vtc.models.patches_to_tokens import patch_codes

MOVES = in_float64.__code__  # goes to the CPU where the device has no float64
STAYS = patch_codes.__code__  # numbers that are made, averaged and compared on the CPU, wherever the model is


class NoFloat64(TorchDispatchMode):
    """Raises ``RuntimeError`` where an operation makes a float64 tensor that would stand on the model's device. Numbers
    (tensors without dimensions) may: torch keeps those of Python on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.on_cpu: list[Tensor] = []  # held, so that nothing else gets their id

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        inside = OPDEFS.get(op.name()) if op.namespace == "vtc" else None
        if inside is not None:  # an operation of vtc's own: what it makes inside counts, too
            with self:
                return inside._init_fn(*args, **(kwargs or {}))
        out = op(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(out) if is_wide(t)]
        if made and not called_by(MOVES):
            known = {id(t) for t in self.on_cpu}
            if not called_by(STAYS) and not any(id(t) in known for t in tree_leaves((args, kwargs))):
                raise RuntimeError(f"{op} makes float64 of shape {tuple(made[0].shape)}, and MPS has no float64")
            self.on_cpu += made
        return out


def is_wide(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float64 and value.dim() > 0


def called_by(code: object) -> bool:
    """Whether a function of this code is running."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None
