"""Keep tokens at random: the baseline every table must show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.methods import register
from vtc.methods.base import Method, Stage
from vtc.signals import Signal
from vtc.tokens import Reduction, VisionTokens


@register("random")
@dataclass(frozen=True)
class Random(Method):
    """Keep ``keep[i]`` tokens drawn at random.

    Token n of every picture has the n-th draw of ``seed``, so pictures of one size keep the same places, alone and in
    a batch; for an error bar over draws run several seeds. ``layer`` moves the cut inside the decoder (an int, or a
    fraction of depth): the baseline to set beside in-decoder methods.
    """

    name: ClassVar[str] = "random"
    paper: ClassVar[str] = "baseline"

    seed: int = 0
    layer: int | float = 0

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ValueError(f"random: seed={self.seed!r} is not an int in [0, 2**63); give one, like 0")
        super().__post_init__()

    def stages(self) -> tuple[Stage, ...]:
        return (Stage(self.layer),)

    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        draw = torch.rand(tokens.row.shape[1], generator=torch.Generator().manual_seed(self.seed))
        return Reduction.top(draw.to(tokens.row.device).expand_as(tokens.row), keep, tokens)
