"""Kernel or reference: one rule for every operation, and one lookup of launch settings by architecture.

``VTC_KERNELS=auto`` (default): the Triton kernel for CUDA tensors, the torch reference for anything else;
``reference``: never a kernel; ``triton``: always a kernel, or an error. Triton is imported on first use.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

MODES = ("auto", "reference", "triton")
OLDEST = (3, 6)  # the oldest Triton the kernels are written for
CHIP = 80  # the oldest NVIDIA architecture with bfloat16: Ampere
T = TypeVar("T")


def mode() -> str:
    """``VTC_KERNELS`` as it is now: auto, reference or triton."""
    value = os.environ.get("VTC_KERNELS", "auto")
    if value not in MODES:
        raise ValueError(f"VTC_KERNELS={value!r} is not one of {', '.join(MODES)}; unset it for auto")
    return value


def use_triton(*tensors: Tensor | None) -> bool:
    """Whether an operation on these tensors (None is skipped) runs as its Triton kernel. float64 is for checking and
    always takes the reference."""
    given = [t for t in tensors if t is not None]
    wanted = mode()
    if wanted == "reference" or any(t.dtype == torch.float64 for t in given):
        return False
    if wanted == "auto" and not (given and all(t.is_cuda for t in given)):
        return False
    problem = obstacle(given)
    if problem and wanted == "triton":
        raise ValueError(f"VTC_KERNELS=triton, but {problem}; set VTC_KERNELS=auto to use the torch reference there")
    return problem is None


def obstacle(tensors: list[Tensor]) -> str | None:
    """Why Triton kernels can not run on these tensors; None = they can."""
    problem = _installed()
    if problem or interpreted():
        return problem
    for t in tensors:
        if not t.is_cuda:
            return f"a tensor is on {t.device} (kernels need CUDA; on a CPU only TRITON_INTERPRET=1 runs them)"
    if torch.version.hip:
        return "this is a ROCm build, on which the kernels are not tried"
    if tensors and arch(tensors[0]) < CHIP:
        return f"the GPU is sm_{arch(tensors[0])} and the kernels need sm_{CHIP} (Ampere) or newer"
    return None


@cache
def _installed() -> str | None:
    try:
        import triton
    except ImportError as error:
        return f"Triton can not be imported ({error}; pip install 'triton>={OLDEST[0]}.{OLDEST[1]}')"
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < OLDEST:
        return f"Triton is {triton.__version__} and the kernels need {OLDEST[0]}.{OLDEST[1]} or newer"
    return None


def device_of(tensor: Tensor) -> AbstractContextManager:
    """Launch kernels on the tensor's GPU, which is not the current one where a model spans several."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def interpreted() -> bool:
    """Whether ``@triton.jit`` functions run in Triton's interpreter (``TRITON_INTERPRET=1``). It holds bfloat16 as bits
    and computes garbage on them: kernels take this as ``UPCAST`` and go through float32."""
    from triton import knobs

    return bool(knobs.runtime.interpret)


def arch(tensor: Tensor) -> int:
    """The tensor's NVIDIA architecture: 80, 90, ...; 80 on a CPU (the interpreter)."""
    return _arch(tensor.device) if tensor.is_cuda else CHIP


@cache
def _arch(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def config(table: Mapping[int, T], chip: int) -> T:
    """From launch settings by architecture (``{80: ..., 90: ...}``; no autotuning) the newest not above ``chip``."""
    return table[max((known for known in table if known <= chip), default=min(table))]


def precision(tensor: Tensor) -> str:
    """``input_precision`` of a kernel's dots: float32 as three tf32 products, or as one where torch may do so too."""
    if tensor.dtype != torch.float32 or interpreted():
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "tf32x3"


def power(n: int, least: int = 16) -> int:
    """The power of two at or above n, at least ``least``: the width of a tile that holds n."""
    return max(least, 1 << (n - 1).bit_length())
