"""VisPruner: the tokens the tower looks at most, and of the rest those that are no one's double."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.methods import register
from vtc.methods.base import Method
from vtc.methods.bipartite import bipartite_round
from vtc.signals.base import Signal
from vtc.signals.tower_attention import TowerAttention
from vtc.tokens import Reduction, VisionTokens, cut, top

STEP, ROUNDS = 8, 72  # tokens dropped a round, and the rounds that empties the paper's 576 tokens


@register("vispruner")
@dataclass(frozen=True)
class VisPruner(Method):
    """The share ``important`` of the kept tokens are those of the largest CLS attention. The rest, in order of
    attention, are dealt alternately to two sides, round after round: of the first side the 8 tokens with the largest
    cosine to one of the second are dropped, until the budget is met. A token with a NaN is no one's double.

    Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs, arXiv 2412.01818. Departs
    from the paper: features are the projected ones; any number of tokens (there, an odd rest fails); of n > 576 tokens
    n / 72 go a round, so that a large picture takes no more rounds than a small one.
    """

    name: ClassVar[str] = "vispruner"
    paper: ClassVar[str] = (
        "Beyond Text-Visual Attention: Exploiting Visual Cues for Effective Token Pruning in VLMs, arXiv 2412.01818"
    )
    variants: ClassVar[str] = "where the tower has no CLS token: mean attention received from all its tokens"

    important: float = 0.5

    def __post_init__(self) -> None:
        share = self.important
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
            raise ValueError(f"vispruner: important={share!r} is not a share in [0, 1]; the paper's is 0.5")
        super().__post_init__()

    def signals(self, stage: int) -> tuple[Signal, ...]:
        return (TowerAttention(-2),)

    @torch.no_grad()
    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        order = top(signals[TowerAttention(-2)], tokens.count, tokens.valid)
        important = [int(k * self.important) for k in keep]
        diverse = [k - m for k, m in zip(keep, important, strict=True)]
        left = [n - m for n, m in zip(tokens.count, important, strict=True)]
        rest = _from(order.clamp(min=0), important, max(left))
        while any(away := _away(left, diverse, tokens.count)):
            features = tokens.features.gather(1, rest[..., None].expand(-1, -1, tokens.features.shape[2]))
            _, stays = bipartite_round(features, left, away)
            left = [n - r for n, r in zip(left, away, strict=True)]
            rest = rest.gather(1, stays)
        return Reduction.keep(torch.cat([cut(order, important), cut(rest, diverse)], dim=1), tokens)


def _from(order: Tensor, start: list[int], wide: int) -> Tensor:
    """``[I, wide]``: each row of ``order [I, N]`` from ``start[i]`` on (any index where it has ended)."""
    index = torch.tensor(start, device=order.device)[:, None] + torch.arange(wide, device=order.device)
    return order.gather(1, index.clamp(max=order.shape[1] - 1))


def _away(left: list[int], wanted: list[int], count: list[int]) -> list[int]:
    """How many tokens of each picture go in a round."""
    return [min(n - k, n // 2, max(STEP, c // ROUNDS)) for n, k, c in zip(left, wanted, count, strict=True)]
