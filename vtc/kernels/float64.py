"""Float64 where there is some: the GPUs of Apple (MPS) have none."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

WITHOUT = ("mps",)  # types of devices


def in_float64(compute: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """``compute(*tensors)``, which makes float64 inside: on the tensors' device, or on the CPU where that has none.

    The result stands on their device, so it may be float64 only where a tensor is."""
    home = tensors[0].device
    if home.type not in WITHOUT:
        return compute(*tensors)
    return compute(*(t.cpu() for t in tensors)).to(home)
