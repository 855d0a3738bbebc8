"""torch's own int4 kernel on CPUs, for the few rows of a decode step; more rows are cheaper through the dense weight.

The operator is private to torch: it is tried once before it is relied on.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from vtc.weights.layouts import DENSE
from vtc.weights.terms import Ints, Tensors, Term

ROWS = 16  # inputs up to which the kernel wins (docs/weights.md)
GROUPS = (32, 64, 128, 256)
Packed = tuple[Tensor, Tensor]


def serves(term: Term, x: Tensor, out: int, width: int) -> bool:
    """Whether the kernel can multiply ``x [..., D]`` by this term, and is worth it."""
    return (
        isinstance(term, Ints)
        and (term.bits, term.layout, term.zeros, term.scaled) == (4, DENSE, False, False)
        and (term.group or width) in GROUPS
        and width % (term.group or width) == 0
        and out % 16 == 0
        and x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and x.numel() <= ROWS * width
        and not (torch.is_grad_enabled() and x.requires_grad)
        and available()
    )


def pack(term: Ints, tensors: Tensors, out: int, width: int) -> Packed:
    """The weight as the kernel wants it: codes ``[O, D / 2]`` and (scale, zero) ``[G, O, 2]``."""
    codes = term.codes(tensors, out, width).to(torch.int32)
    scale = tensors["scale"].to(torch.bfloat16).T
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1), torch.stack(
        [scale, torch.zeros_like(scale)], dim=-1
    ).contiguous()


def multiply(x: Tensor, packed: Packed, group: int) -> Tensor:
    """``[..., D] -> [..., O]``."""
    weight, scales = packed
    y = torch.ops.aten._weight_int4pack_mm_for_cpu(x.reshape(-1, x.shape[-1]), weight, group, scales)
    return y.view(*x.shape[:-1], -1)


@functools.cache
def available() -> bool:
    """Whether this torch has the operator and it computes what the dense weight does."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (32, 64), generator=generator, dtype=torch.uint8)
    scale = torch.rand(32, 2, generator=generator).to(torch.bfloat16)
    x = torch.randn(3, 64, generator=generator).to(torch.bfloat16)
    term = Ints(4, 32)
    tensors = {**Ints.pack(codes, 4, None, DENSE), "scale": scale}
    try:
        got = multiply(x, pack(term, tensors, 32, 64), 32).float()
    except (AttributeError, RuntimeError):
        return False
    want = x.float() @ term.dense({k: v.float() if k == "scale" else v for k, v in tensors.items()}, 32, 64).T
    return bool((got - want).norm() <= 0.01 * want.norm())
