"""What the passes that prune by a score alone share: the weights that stay are as they were."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtc.weights.fitting.masks import highest
from vtc.weights.passes._matrix import as_floats
from vtc.weights.passes.base import Candidate, Pass, check_pattern, check_share


@dataclass(frozen=True)
class ByScore(Pass):
    """Prune the ``sparsity`` of every output row that scores lowest, or n of every m inputs by ``pattern`` ("2:4").
    What a pass before pruned scores 0."""

    sparsity: float = 0.5
    pattern: str | None = None

    def __post_init__(self) -> None:
        check_share("sparsity", self.sparsity)
        check_pattern(self.pattern)

    def score(self, weight: Tensor, layer: Candidate) -> Tensor:
        """``[O, D]``, at least 0: how much each of ``weight [O, D]`` matters."""
        raise NotImplementedError

    def fit(self, layer: Candidate) -> Candidate:
        weight = layer.for_matrix
        return as_floats(layer, weight, highest(self.score(weight, layer), self.sparsity, self.pattern), self.pattern)
