"""The relaxed choice of the k best, for methods that learn what they keep."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_top_k(score: Tensor, keep: Tensor, valid: Tensor, temperature: float = 1.0) -> Tensor:
    """``[I, N]`` in (0, 1): ``sigmoid((score - threshold) / temperature)`` with the threshold at which the gates of
    picture i sum to ``keep[i]``; 0 in padding. Differentiable in score ``[I, N]`` and keep ``[I]`` (0 < keep < count),
    through the threshold too."""
    score = score.masked_fill(~valid, 0.0)
    low = high = torch.zeros_like(score[:, 0])

    def gates(threshold: Tensor) -> Tensor:
        return ((score - threshold[:, None]) / temperature).sigmoid().masked_fill(~valid, 0.0)

    with torch.no_grad():
        low, high = score.amin(dim=1) - 50 * temperature, score.amax(dim=1) + 50 * temperature
        for _ in range(60):
            middle = (low + high) / 2
            above = gates(middle).sum(dim=1) > keep
            low, high = middle.where(above, low), high.where(above, middle)
    near = gates(low)
    slope = (near * (1 - near)).sum(dim=1).detach() / temperature
    # A Newton step from the solution moves nothing and has the gradient of the threshold.
    return gates(low + (near.sum(dim=1) - keep) / slope.clamp_min(1e-6))
