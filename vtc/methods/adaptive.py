"""Adaptive: at the decoder's input keep what covers the picture, inside the decoder what the question looks at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from vtc.kernels.greedy_diverse import greedy_diverse
from vtc.methods import register
from vtc.methods.base import Method, Stage
from vtc.signals.base import Signal
from vtc.signals.text_attention import TextAttention
from vtc.tokens import Reduction, VisionTokens, cut


@register("adaptive")
@dataclass(frozen=True)
class Adaptive(Method):
    """Two cuts that need no tower signal, so that every family has them.

    Before the first decoder layer: greedy max-min diversity (as DivPrune), each dropped token merged into its nearest
    kept one, which from there on weighs for all it stands for (``share``). Before decoder layer ``layer`` (an int, or a
    fraction of depth; None = no second cut): the tokens that the prompt's last row attends to most in that layer, mean
    over heads, computed from the states at its entry; sizes stay, and what is cut here hands its share to nobody. The
    second cut leaves ``narrow`` of what the first left.

    Which layer knows what the question asks for differs from model to model: ``vtc.calibrate`` finds it. The defaults
    are those of the testbed's model (docs/adaptive.md).
    """

    name: ClassVar[str] = "adaptive"
    paper: ClassVar[str] = "of this library; docs/adaptive.md"

    layer: int | float | None = 0.375
    narrow: float = 0.3
    share: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        narrow = self.narrow
        if isinstance(narrow, bool) or not isinstance(narrow, (int, float)) or not 0 < narrow <= 1:
            raise ValueError(f"{self.name}: narrow={narrow!r} is not a share in (0, 1]; give one, like 0.3")
        super().__post_init__()
        if self.layer is not None and self.layer == 0:
            raise ValueError(
                f"{self.name}: layer={self.layer!r} is where the first cut stands; give an int from 1, a fraction of "
                "depth in (0, 1), or None for no second cut"
            )

    def stages(self) -> tuple[Stage, ...]:
        return (Stage(0),) if self.layer is None else (Stage(0), Stage(self.layer, factor=self.narrow))

    def signals(self, stage: int) -> tuple[Signal, ...]:
        return (TextAttention("next"),) if stage else ()

    @torch.no_grad()
    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        if stage:
            return Reduction.top(signals[TextAttention("next")], keep, tokens)
        order = greedy_diverse(tokens.features, max(keep), "maxmin", tokens.valid)
        return Reduction.keep(cut(order, keep), tokens)
