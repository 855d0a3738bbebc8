"""SVD-LLM: the low rank with the least output error there is (arXiv 2403.07378)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vtc.weights.fitting.lowrank import whitened
from vtc.weights.passes import register
from vtc.weights.passes._lowrank import LowRankPass
from vtc.weights.passes.base import Candidate


@register("svdllm")
@dataclass(frozen=True)
class SVDLLM(LowRankPass):
    """SVD of the weights whitened by their inputs. ``vtc.weights.lowrank.rank_curve`` has its error at every rank,
    ``refit`` its update behind layers that are compressed themselves."""

    name = "svdllm"

    def factors(self, rest: Tensor, layer: Candidate, rank: int) -> tuple[Tensor, Tensor]:
        return whitened(rest, layer.gram.moment, rank)
