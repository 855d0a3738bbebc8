"""Kernels of torch for a term of a compressed weight, where there is one that fits; else the dense weight is made.

The operators are private to torch: each is tried once on a device, against the dense weight, before it is relied on.
Those for CUDA were never run (docs/weights.md).
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
from torch import Tensor

from vtc.weights.codec.sparsity import DENSE
from vtc.weights.codec.terms.base import Tensors, Term
from vtc.weights.codec.terms.floats import Floats
from vtc.weights.codec.terms.ints import Ints

ROWS = 16  # up to which the int4 kernel of CPUs wins; more are cheaper through the dense weight
GROUPS = (32, 64, 128, 256)


class Kernel:
    """Multiplies inputs by a term, from a copy of its tensors in a form of its own."""

    device: ClassVar[str]

    @staticmethod
    def fits(term: Term, tensors: Tensors, x: Tensor, out: int, width: int) -> bool:
        """Whether inputs ``x [..., D]`` can be multiplied by this term of these tensors, and are worth it."""
        raise NotImplementedError

    @staticmethod
    def pack(term: Term, tensors: Tensors, out: int, width: int) -> Any:
        """The weight as the kernel wants it."""
        raise NotImplementedError

    @staticmethod
    def multiply(x: Tensor, packed: Any, group: int) -> Tensor:
        """``[M, D] -> [M, O]``; group: inputs that share a scale."""
        raise NotImplementedError


class Int4(Kernel):
    """Four-bit integers and inputs in bfloat16, few rows."""

    device = "cpu"
    rows: ClassVar[int] = 16  # outputs are a multiple of it
    columns: ClassVar[int] = 32  # inputs are

    @classmethod
    def fits(cls, term: Term, tensors: Tensors, x: Tensor, out: int, width: int) -> bool:
        return (
            isinstance(term, Ints)
            and (term.bits, term.layout, term.zeros, term.scaled) == (4, DENSE, False, False)
            and (term.group or width) in GROUPS
            and width % (term.group or width) == 0
            and width % cls.columns == 0
            and out % cls.rows == 0
            and x.dtype == torch.bfloat16
            and x.numel() <= ROWS * width
        )

    @staticmethod
    def pack(term: Ints, tensors: Tensors, out: int, width: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        codes = term.codes(tensors, out, width).to(torch.int32)
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1), scale_and_zero(tensors)

    @staticmethod
    def multiply(x: Tensor, packed: tuple[Tensor, Tensor], group: int) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed[0], group, packed[1])


class Int4Cuda(Int4):
    """The same on a GPU, never run. ``ROWS`` is a figure of CPUs; where it lies here was not measured."""

    device, rows, columns = "cuda", 8, 128
    TILES: ClassVar[int] = 8  # of 16 inputs, laid out together

    @staticmethod
    def pack(term: Ints, tensors: Tensors, out: int, width: int) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        codes = term.codes(tensors, out, width)
        pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).contiguous()
        return torch.ops.aten._convert_weight_to_int4pack(pairs, Int4Cuda.TILES), scale_and_zero(tensors)

    @staticmethod
    def multiply(x: Tensor, packed: tuple[Tensor, Tensor], group: int) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm(x, packed[0], group, packed[1])


class TwoOfFour(Kernel):
    """A matrix pruned 2:4, floats or integers, through the semi-structured sparse products of GPUs. Packed in the dtype
    of the weight, which inputs under autocast need not have."""

    device = "cuda"

    @staticmethod
    def fits(term: Term, tensors: Tensors, x: Tensor, out: int, width: int) -> bool:
        pruned = isinstance(term, Floats | Ints) and term.layout == "2:4"
        same = all(t.dtype == x.dtype for t in tensors.values() if t.is_floating_point())
        return pruned and same and out % 32 == 0 and width % 64 == 0 and x.dtype in (torch.float16, torch.bfloat16)

    @staticmethod
    def pack(term: Term, tensors: Tensors, out: int, width: int) -> Tensor:
        return torch.sparse.to_sparse_semi_structured(term.dense(tensors, out, width).contiguous())

    @staticmethod
    def multiply(x: Tensor, packed: Tensor, group: int) -> Tensor:
        return torch.nn.functional.linear(x, packed)


KERNELS: tuple[type[Kernel], ...] = (Int4, Int4Cuda, TwoOfFour)


def kernel_for(term: Term, tensors: Tensors, x: Tensor, out: int, width: int) -> type[Kernel] | None:
    """The kernel to multiply ``x [..., D]`` by this term with; None where the dense weight has to be made."""
    if torch.is_grad_enabled() and x.requires_grad:
        return None
    for kernel in KERNELS:
        if kernel.device == x.device.type and kernel.fits(term, tensors, x, out, width):
            return kernel if works(kernel, str(x.device), x.dtype) else None  # type: ignore[arg-type]  # classes hash
    return None


def scale_and_zero(tensors: Tensors) -> Tensor:
    """``[G, O, 2]`` bfloat16: each group's scale and the value of code 8, which is 0."""
    scale = tensors["scale"].to(torch.bfloat16).T
    return torch.stack([scale, torch.zeros_like(scale)], dim=-1).contiguous()


@functools.cache
def works(kernel: type[Kernel], device: str, dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether this torch has the operator on ``device`` and it computes what the dense weight does."""
    generator = torch.Generator().manual_seed(0)
    out, width, group = 64, 256, 128
    x = torch.randn(3, width, generator=generator).to(device, dtype)
    scale = torch.rand(out, width // group, generator=generator).to(dtype)
    codes = torch.randint(0, 16, (out, width), generator=generator, dtype=torch.uint8)
    layout = "2:4" if kernel is TwoOfFour else DENSE
    mask = None if layout == DENSE else torch.tensor([True, False, False, True]).repeat(out, width // 4)
    term = Ints(4, group, layout)
    tensors = {k: v.to(device) for k, v in {**Ints.pack(codes, 4, mask, layout), "scale": scale}.items()}
    try:
        got = kernel.multiply(x, kernel.pack(term, tensors, out, width), group).float()
    except (AttributeError, RuntimeError):
        return False
    want = x.float() @ term.dense(tensors, out, width).float().T
    return bool((got - want).norm() <= 0.01 * want.norm())
