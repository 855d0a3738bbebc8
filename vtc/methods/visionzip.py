"""VisionZip: the tokens the tower looks at most, and merged ones for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.kernels.match import match
from vtc.methods import register
from vtc.methods.base import Method
from vtc.signals.base import Signal
from vtc.signals.tower_attention import TowerAttention
from vtc.signals.tower_keys import TowerKeys
from vtc.tokens import Reduction, VisionTokens, scatter_valid, sort_padded, top


@register("visionzip")
@dataclass(frozen=True)
class VisionZip(Method):
    """Dominant tokens are those of the largest CLS attention, kept as they are. Of the rest, in order, every step-th is
    a contextual target; each other one joins the target of largest cosine of keys, and a contextual token is its target
    PLUS the mean of those that joined it.

    ``contextual`` is the share of the kept tokens that are contextual (10 of 64; at least one of two or more). A token
    whose key has a NaN joins none and is dropped.

    VisionZip: Longer is Better but Not Necessary in Vision Language Models, arXiv 2412.04467. Departs from the paper:
    the CLS token itself has no placeholder row and is dropped, a patch takes its room; features are the projected ones.
    """

    name: ClassVar[str] = "visionzip"
    paper: ClassVar[str] = "VisionZip: Longer is Better but Not Necessary in Vision Language Models, arXiv 2412.04467"
    variants: ClassVar[str] = "where the tower has no CLS token: mean attention received from all its tokens"
    trains: ClassVar[bool] = True

    contextual: float = 10 / 64

    def __post_init__(self) -> None:
        share = self.contextual
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share < 1:
            raise ValueError(f"visionzip: contextual={share!r} is not a share in [0, 1); the paper's is 10 / 64")
        super().__post_init__()

    def signals(self, stage: int) -> tuple[Signal, ...]:
        return TowerAttention(-2), TowerKeys(-2)

    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        attention, keys = (signals[s] for s in self.signals(stage))
        context = [max(0, min(k - 1, max(int(k * self.contextual + 0.5), self.contextual > 0))) for k in keep]
        index = torch.arange(tokens.row.shape[1], device=keys.device).expand_as(tokens.row)
        dominant = top(attention, [k - c for k, c in zip(keep, context, strict=True)], tokens.valid)
        rest = scatter_valid(tokens.valid, dominant, torch.zeros_like(dominant))

        steps = [max(1, (n - k + c) // max(1, c)) for n, k, c in zip(tokens.count, keep, context, strict=True)]
        step, wanted = torch.tensor([steps, context], device=keys.device)[..., None]
        rank = rest.cumsum(1) - 1
        target = rest & (rank % step == 0) & (rank // step < wanted)
        targets = sort_padded(index.where(target, -1))[:, : max(context)]

        alone = tokens.valid & ~rest | target
        near, _ = match(keys, _take(keys, targets), targets >= 0)
        near = near.where((near >= 0) & tokens.valid & ~alone, max(context))  # the last column: joins none
        joined = torch.zeros(len(keep), max(context) + 1, device=keys.device)
        joined = joined.scatter_add_(1, near, torch.ones_like(near, dtype=joined.dtype)).gather(1, near)
        leader = torch.cat([targets, targets.new_full((len(keep), 1), -1)], dim=1).gather(1, near)
        return Reduction.join(index.where(alone, leader), max(keep), (1 / joined).masked_fill(alone, 1.0))


def _take(values: Tensor, index: Tensor) -> Tensor:
    """``[I, K, d]``: rows ``index [I, K]`` of ``values [I, N, d]`` (row 0 for -1)."""
    return values.gather(1, index.clamp(min=0)[..., None].expand(-1, -1, values.shape[2]))
