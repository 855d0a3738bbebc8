"""Keys and values merge inside attention, in each layer by how alike its keys are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from vtc.kernels.greedy_diverse import greedy_diverse
from vtc.kernels.match import match
from vtc.methods import register
from vtc.methods._share import share
from vtc.methods.base import Method, Stage
from vtc.signals.base import Signal
from vtc.tokens import Reduction, VisionTokens, cut


@register("kvmerge")
@dataclass(frozen=True)
class KvMerge(Method):
    """In every decoder layer from ``layer`` on (an int, or a fraction of depth): greedy max-min diversity over the
    layer's keys, heads side by side (as DivPrune does over features), and each other key joins its nearest of these.
    Keys and values become their group's mean; all rows stay queries. A key that stands for s tokens weighs s in the
    layer's softmax; ``share=False`` merges without that.

    A layer's share of the budget follows how alike its keys are: one over the mean of ``1 - cosine`` to the nearest
    other key. More keys where they are alike is not what one would guess; fewer there was measured worse than the same
    count in all layers, and more no worse (docs/how-it-works.md). Keys are compared and averaged as attention sees
    them, rotated: two that differ in position alone count as different, and a mean of two phases is shorter than both.

    Of this library; size-weighted averages and the log-size bias are those of Token Merging, arXiv 2210.09461. Departs
    from the paper: in the language model, on its keys and values and not on its rows; groups around diverse anchors,
    not bipartite rounds, which were measured far worse (docs/how-it-works.md).
    """

    name: ClassVar[str] = "kvmerge"
    paper: ClassVar[str] = "of this library, after Token Merging: Your ViT But Faster, arXiv 2210.09461"
    trains: ClassVar[bool] = True
    reduces_keys: ClassVar[bool] = True

    layer: int | float = 0
    share: bool = field(default=True, kw_only=True)

    def stages(self) -> tuple[Stage, ...]:
        return (Stage(self.layer),)

    def need(self, tokens: VisionTokens, signals: dict[Signal, Tensor]) -> Tensor:
        _, cosine = match(tokens.features, tokens.features, tokens.valid, skip_self=True)
        apart = (1 - cosine).clamp(min=0).where(tokens.valid & cosine.isfinite(), 0.0)
        return tokens.valid.sum(dim=1) / apart.sum(dim=1).clamp(min=1e-6)

    @torch.no_grad()
    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        order = greedy_diverse(tokens.features, max(keep), "maxmin", tokens.valid)
        return share(tokens, Reduction.keep(cut(order, keep), tokens))
