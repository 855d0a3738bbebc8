"""Which weights of a matrix stay, by a score. Pure functions; the first of equals goes."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.weights.codec import sparsity as layouts


def all_but_lowest(score: Tensor, n: int) -> Tensor:
    """``[R, K]`` bool: False at the n lowest of each row of ``score [R, K]``."""
    lowest = score.argsort(dim=1, stable=True)[:, :n]
    return torch.ones_like(score, dtype=torch.bool).scatter_(1, lowest, False)


def highest(score: Tensor, sparsity: float, layout: str | None) -> Tensor:
    """``[O, D]`` bool: True for what stays. The layout "n:m" drops the n lowest of every m inputs; None drops the
    ``sparsity`` lowest of every row. Raises ``WeightsError`` where m does not divide D."""
    out, width = score.shape
    if layout is None:
        return all_but_lowest(score, int(width * sparsity))
    layouts.value_shape(layout, 0, out, width)
    n, m = layouts.n_of_m(layout)  # type: ignore[misc]
    return all_but_lowest(score.reshape(-1, m), n).view(out, width)
