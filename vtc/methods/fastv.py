"""FastV: early in the decoder, keep the tokens the prompt's last row looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtc.methods import register
from vtc.methods.base import Method, Stage
from vtc.signals.base import Signal
from vtc.signals.text_attention import TextAttention
from vtc.tokens import Reduction, VisionTokens


@register("fastv")
@dataclass(frozen=True)
class FastV(Method):
    """Before decoder layer ``layer`` (an int from 1, or a fraction of depth) keep the tokens that received the most
    attention from the prompt's last row in the layer before it, mean over heads. Positions stay.

    An Image is Worth 1/2 Tokens After Layer 2, arXiv 2403.06764. Departs from the paper's text, not from its code: the
    text averages over all rows, the code reads the last one, as here.
    """

    name: ClassVar[str] = "fastv"
    paper: ClassVar[str] = "An Image is Worth 1/2 Tokens After Layer 2, arXiv 2403.06764"

    layer: int | float = 2 / 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layer == 0:
            raise ValueError(
                f"fastv: layer={self.layer!r} has no decoder layer before it to take attention from; "
                "give an int from 1 or a fraction of depth in (0, 1)"
            )

    def stages(self) -> tuple[Stage, ...]:
        return (Stage(self.layer),)

    def signals(self, stage: int) -> tuple[Signal, ...]:
        return (TextAttention("previous"),)

    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        return Reduction.top(signals[TextAttention("previous")], keep, tokens)
