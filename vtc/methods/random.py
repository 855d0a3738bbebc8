"""Keep tokens at random: the baseline every table must show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.methods import register
from vtc.methods.base import Method, Stage
from vtc.signals.base import Signal
from vtc.tokens import Reduction, VisionTokens

DRAWS, STRIDE = 1 << 17, 7919


@register("random")
@dataclass(frozen=True)
class Random(Method):
    """Keep ``keep[i]`` tokens drawn at random.

    One list of draws a ``seed``; each picture starts reading it at a place given by its own largest token, so that
    pictures differ, and a picture keeps the same tokens alone and in a batch. ``layer`` moves the cut inside the
    decoder (an int, or a fraction of depth): the baseline to set beside in-decoder methods.
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
        draws = torch.rand(DRAWS, generator=torch.Generator().manual_seed(self.seed)).to(tokens.row.device)
        norm = tokens.features.float().norm(dim=-1).nan_to_num(0.0).masked_fill(~tokens.valid, -1.0)
        start = norm.argmax(dim=1, keepdim=True) * STRIDE
        place = (start + torch.arange(tokens.row.shape[1], device=start.device)) % DRAWS
        return Reduction.top(draws[place], keep, tokens)
