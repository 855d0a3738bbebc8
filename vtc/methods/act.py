"""ACT-IN-LLM without training: every layer keeps the keys and values that the question looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtc.methods import register
from vtc.methods.base import Method, Stage
from vtc.signals.base import Signal
from vtc.signals.text_attention import TextAttention
from vtc.tokens import Reduction, VisionTokens


@register("act")
@dataclass(frozen=True)
class Act(Method):
    """In every decoder layer from ``layer`` on (an int, or a fraction of depth) keep the keys and values of the tokens
    that the prompt's last row attends to most, mean over heads. All rows stay queries, so a token that one layer leaves
    out may come back in the next; positions stay.

    With ``share`` a key that is left out joins its nearest one that stays (largest cosine of that layer's keys).

    A layer's share of the budget follows how spread its attention is: ``exp(H(a))`` tokens for the attention ``a [N]``
    of the last row over the picture's N tokens, its sum made 1.

    ACT-IN-LLM: Adaptively Compression Vision Tokens in LLM, openreview 3Ofy2jNsNL. Departs from the paper: nothing is
    trained; every layer from ``layer`` on is reduced, by a budget of its own (the paper: chosen layers, a fixed number
    of high-resolution tokens); ``of="own"`` ranks by the layer's own attention, which is at hand where its keys are
    reduced and was measured better (the paper, and ``of="previous"``: by that of the layer before).
    """

    name: ClassVar[str] = "act"
    paper: ClassVar[str] = "ACT-IN-LLM: Adaptively Compression Vision Tokens in LLM, openreview 3Ofy2jNsNL"
    reduces_keys: ClassVar[bool] = True

    layer: int | float = 0
    of: Literal["own", "previous"] = "own"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.of not in ("own", "previous"):
            raise ValueError(f"act: of={self.of!r} is no layer to rank by; give 'own' or 'previous'")
        if self.of == "previous" and self.layer == 0:
            raise ValueError("act: layer=0 has no decoder layer before it; give an int from 1, a fraction, or of='own'")

    def _signal(self) -> TextAttention:
        return TextAttention("next" if self.of == "own" else "previous")

    def stages(self) -> tuple[Stage, ...]:
        return (Stage(self.layer),)

    def signals(self, stage: int) -> tuple[Signal, ...]:
        return (self._signal(),)

    def need(self, tokens: VisionTokens, signals: dict[Signal, Tensor]) -> Tensor:
        return spread(signals[self._signal()].masked_fill(~tokens.valid, 0.0))

    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        return Reduction.top(signals[self._signal()], keep, tokens)


def spread(attention: Tensor) -> Tensor:
    """``[I]``: over how many tokens ``attention [I, N]`` (each >= 0) is spread: exp of its entropy, its sum made 1."""
    share = attention / attention.sum(dim=1, keepdim=True).clamp_min(1e-30)
    return torch.special.entr(share).sum(dim=1).exp()
