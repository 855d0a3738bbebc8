"""DART: a few pivots, and for each the tokens that are least its double."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.kernels.match import unit
from vtc.methods import register
from vtc.methods._ranks import first, ranks_within
from vtc.methods.base import Method, Stage
from vtc.signals.base import Signal
from vtc.signals.key_norm import KeyNorm
from vtc.signals.text_pivots import TextPivots
from vtc.tokens import Reduction, VisionTokens, cut, scatter_valid, top

TEXT = TextPivots(4)


@register("dart")
@dataclass(frozen=True)
class DART(Method):
    """Before decoder layer ``layer`` (an int, 0 = the decoder's input, or a fraction of depth): pivots are the
    ``pivots`` tokens and the 4 text rows behind the picture whose keys in the layer before have the largest L1 norm (at
    the input: whose embeddings have). One after the other, tokens first, by norm, each pivot takes from those left the
    tokens of smallest cosine to its state, all pivots near-equally many.

    Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More, arXiv 2502.11494. Departs
    from the paper: cosines are of the states as they are (there, after the decoder's last norm); pivots come by norm
    (there, in the order of a Python set of their places); the budget is met exactly (there, in steps of 8 tokens).
    """

    name: ClassVar[str] = "dart"
    paper: ClassVar[str] = (
        "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More, arXiv 2502.11494"
    )
    variants: ClassVar[str] = "layer=0: by the norms of the input embeddings"

    layer: int | float = 2 / 32
    pivots: int = 4

    def __post_init__(self) -> None:
        n = self.pivots
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"dart: pivots={n!r} is not an int >= 1; the paper's is 4")
        super().__post_init__()

    def stages(self) -> tuple[Stage, ...]:
        return (Stage(self.layer),)

    def signals(self, stage: int) -> tuple[Signal, ...]:
        return KeyNorm(), TEXT

    @torch.no_grad()
    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        norm = signals[KeyNorm()]
        own = top(norm, [min(k, self.pivots) for k in keep], tokens.valid)
        states = tokens.features.gather(1, own.clamp(min=0)[..., None].expand(-1, -1, tokens.features.shape[2]))
        states = states.masked_fill(own[..., None] < 0, torch.nan)
        kept = scatter_valid(torch.zeros_like(tokens.valid), own, torch.ones_like(own))
        kept = unlike(torch.cat([states, signals[TEXT].to(states.dtype)], dim=1), kept, tokens, keep)
        return Reduction.keep(cut(first(kept, norm, tokens), keep), tokens)


def unlike(pivots: Tensor, kept: Tensor, tokens: VisionTokens, keep: list[int]) -> Tensor:
    """``kept [I, N]`` and what the ``pivots [I, P, D]`` take one after the other (one with a NaN: nothing), until
    ``keep[i]`` are kept."""
    there = pivots.isfinite().all(2)
    many, left = there.sum(1, keepdim=True).clamp(min=1), torch.tensor(keep, device=kept.device)[:, None]
    left = left - kept.sum(1, keepdim=True)
    takes = (left // many + (there.cumsum(1) <= left % many)) * there
    features = unit(tokens.features)
    for pivot, take in zip(unit(pivots).unbind(1), takes.unbind(1), strict=True):
        away = -(features @ pivot[..., None])[..., 0]
        kept = kept | (~kept & (ranks_within(kept.long(), away, tokens) < take[:, None]))
    return kept
