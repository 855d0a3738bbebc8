"""The one table of tolerances: how close is equal, by dtype."""

import torch
from torch import Tensor

TOL = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-11},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.float16: {"rtol": 2e-3, "atol": 2e-3},
    torch.bfloat16: {"rtol": 1.6e-2, "atol": 1e-2},
}


def assert_close(name: str, got: Tensor, want: Tensor) -> None:
    """``got`` equals ``want`` within the coarser of their dtypes' tolerances; the message names the tensor."""
    tolerance = max((TOL[t.dtype] for t in (got, want)), key=lambda t: t["rtol"])
    torch.testing.assert_close(
        got.double(), want.double(), **tolerance, msg=lambda text: f"{name} ({got.dtype}, {want.dtype}): {text}"
    )


def assert_same(name: str, got: Tensor, want: Tensor) -> None:
    """``got`` equals ``want`` bit for bit, NaN included."""
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True, msg=lambda text: f"{name}: {text}")
