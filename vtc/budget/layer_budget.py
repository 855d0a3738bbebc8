"""A budget that every decoder layer spends a share of: keys that a layer holds, or rows that run in it."""

from __future__ import annotations

from dataclasses import dataclass, field

from vtc.budget.schedule import allot, keys_to_spend
from vtc.tokens import Budget


@dataclass
class LayerBudget:
    """What the pictures of one forward may still spend. full: tokens of each picture; left: what it has; weights: the
    shares that layers ``first``, ``first`` + 1, ... start from; spent: layer -> what each picture got there."""

    full: list[int]
    left: list[int]
    weights: list[float]
    first: int
    needs: list[list[float]] = field(default_factory=list)  # by layer and picture
    spent: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, full: list[int], budget: Budget, first: int, weights: list[float]) -> LayerBudget:
        """``budget`` averaged over all decoder layers, of which those before ``first`` hold every token."""
        left = [keys_to_spend(n, budget, first, first + len(weights)) for n in full]
        return cls(full, left, weights, first)

    def spend(self, layer: int, needs: list[float] | None = None) -> list[int]:
        """What each picture gets in ``layer``, by its need there against the usual one so far (None: needs are
        alike)."""
        self.needs.append(needs or [1.0] * len(self.full))
        usual = [sum(row) / len(row) for row in zip(*self.needs, strict=True)]
        weights = self.weights[layer - self.first :]
        each = zip(self.left, self.full, self.needs[-1], usual, strict=True)
        spent = self.spent[layer] = [allot(left, weights, full, need, mean) for left, full, need, mean in each]
        self.left = [left - n for left, n in zip(self.left, spent, strict=True)]
        return spent
