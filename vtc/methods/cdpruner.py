"""CDPruner: keep the tokens that are diverse and close to what the prompt asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.kernels.greedy_diverse import greedy_diverse
from vtc.methods import register
from vtc.methods.base import Method
from vtc.signals.base import Signal
from vtc.signals.text_relevance import TextRelevance
from vtc.tokens import Reduction, VisionTokens, cut


@register("cdpruner")
@dataclass(frozen=True)
class CDPruner(Method):
    """Greedy choice of the likeliest set under a determinantal point process with kernel r_i cos(x_i, x_j) r_j, where r
    is the relevance of each token to the prompt's text, scaled to [0, 1] over its picture.

    Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs, arXiv 2506.10967.
    Departs from the paper: relevance is the mean cosine of the feature with the input embeddings of the prompt's own
    text (there, minus the mean cosine in the space of CLIP's text tower, which a VLM does not carry); it is scaled by
    picture (there, over the batch). A token with a NaN comes last.
    """

    name: ClassVar[str] = "cdpruner"
    paper: ClassVar[str] = (
        "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs, arXiv 2506.10967"
    )

    def signals(self, stage: int) -> tuple[Signal, ...]:
        return (TextRelevance(),)

    @torch.no_grad()
    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        quality = scaled(signals[TextRelevance()], tokens.valid)
        order = greedy_diverse(tokens.features, max(keep), "dpp", tokens.valid, quality)
        return Reduction.keep(cut(order, keep), tokens)


def scaled(score: Tensor, valid: Tensor) -> Tensor:
    """``score [I, N]`` from just above 0 to 1 over each picture; 1 where all are alike, 0 for what is not finite."""
    score = score if score.dtype == torch.float64 else score.float()
    sound = valid & score.isfinite()
    low = score.masked_fill(~sound, torch.inf).amin(1, keepdim=True)
    span = score.masked_fill(~sound, -torch.inf).amax(1, keepdim=True) - low
    return ((score - low + 1e-6) / span).where(span > 0, 1).where(sound, 0)
