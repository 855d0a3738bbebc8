"""What the passes that fit a low rank have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.errors import WeightsError
from vtc.weights.codec.terms.low_rank import LowRank
from vtc.weights.fitting.lowrank import rank_for
from vtc.weights.passes.base import Candidate, Pass


@dataclass(frozen=True)
class LowRankPass(Pass):
    """Give either ``rank``, or ``keep``: the share of the layer's weights that both factors may hold together (neither:
    half)."""

    rank: int | None = None
    keep: float | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.keep is not None:
            raise WeightsError(f"{self.name} takes one of rank (like 32) and keep (like 0.5), not both")
        if self.rank is not None and (not isinstance(self.rank, int) or isinstance(self.rank, bool) or self.rank < 1):
            raise WeightsError(f"rank must be a whole number of at least 1, not {self.rank!r}")
        if self.keep is not None and (not isinstance(self.keep, (int, float)) or not 0 < self.keep <= 1):
            raise WeightsError(f"keep must be a share of the weights in (0, 1], like 0.5, not {self.keep!r}")

    def fit(self, layer: Candidate) -> Candidate:
        rest = layer.rest
        check_layer(rest, layer if self.needs_gram else None)
        out, width = rest.shape
        rank = rank_for(out, width, self.rank, 0.5 if self.rank is None and self.keep is None else self.keep)
        u, v = self.factors(rest, layer, rank)
        u, v = (t.to(layer.dtype).contiguous() for t in (u, v))  # as they will be stored: products depend on strides
        return layer.with_part(LowRank(rank), {"u": u, "v": v})

    @abstractmethod
    def factors(self, rest: Tensor, layer: Candidate, rank: int) -> tuple[Tensor, Tensor]:
        """``(u [O, R], v [R, D])`` for ``rest [O, D]``, what the layer's other terms leave."""


def check_layer(weight: Tensor, calibrated: Candidate | None) -> None:
    """Raises ``WeightsError`` for weights that are not finite, and for a calibration that never reached the layer."""
    if not bool(torch.isfinite(weight).all()):
        raise WeightsError("the layer holds weights that are not finite; leave it out, or repair the checkpoint")
    if calibrated is not None and not bool((calibrated.gram.moment.diagonal() > 0).any()):
        raise WeightsError("no calibration token reached the layer; give examples that use it, or leave it out")
