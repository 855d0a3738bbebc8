"""Layers that passes are tried on: inputs of a few strong directions, with outlier columns."""

import torch

from vtc.weights.fitting.gram import Gram
from vtc.weights.passes.base import Candidate


def inputs(tokens: int = 192, width: int = 64, seed: int = 0) -> torch.Tensor:
    """``[T, D]``, correlated; every tenth column is large."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, width, generator=draw) @ torch.randn(width, width, generator=draw) / width**0.5
    x[:, ::10] *= 20
    return x


def layer(out: int = 48, width: int = 64, tokens: int = 192, dtype: torch.dtype = torch.float32, seed: int = 0):
    """A layer of ``out`` outputs that nothing was done to yet."""
    draw = torch.Generator().manual_seed(seed + 1)
    weight = torch.randn(out, width, generator=draw).to(dtype).float()
    return Candidate(weight, Gram.of(inputs(tokens, width, seed)), dtype)
