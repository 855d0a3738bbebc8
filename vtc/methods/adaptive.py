"""Adaptive: cover the picture with few tokens, let every layer ask for its own keys of them, and stop them early."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from vtc.methods import register
from vtc.methods.base import Method, Stage
from vtc.methods.frozen import check_frozen, cover, frozen_stage
from vtc.signals.base import Signal
from vtc.tokens import Reduction, VisionTokens


@register("adaptive")
@dataclass(frozen=True)
class Adaptive(Method):
    """Nothing of it needs a tower signal or calibration, so that every family has it.

    Before the first decoder layer ``candidates`` times the budget are kept: greedy max-min diversity (as DivPrune),
    each dropped token merged into its nearest kept one, which from there on weighs for all it stands for (``share``).
    Of these every layer chooses its keys by the question, as many as the budget says, and from decoder layer ``layer``
    (an int, or a fraction of depth) on only the part ``running`` of them runs, as in ``frozen``, where ``memory`` is
    explained, too. ``layer=None``: the first cut alone, at the budget.

    With the defaults two and a half times as many rows run, averaged over layers, as keys are held.
    """

    name: ClassVar[str] = "adaptive"
    paper: ClassVar[str] = "of this library; docs/adaptive.md"

    layer: int | float | None = 0.125
    candidates: float = 6.0
    running: float = 0.33
    share: bool = field(default=True, kw_only=True)
    memory: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_frozen(self.name, self.candidates, self.running, self.memory)
        super().__post_init__()
        if self.memory and self.layer is None:
            raise ValueError(
                f"{self.name}: memory=True keeps the candidates that a question did not choose, and with layer=None no "
                "question chooses; give a layer, like 0.125, or leave memory out"
            )
        if self.layer is not None and self.layer == 0:
            raise ValueError(
                f"{self.name}: layer={self.layer!r} is where the first cut stands; give an int from 1, a fraction of "
                "depth in (0, 1), or None for the first cut alone"
            )

    def stages(self) -> tuple[Stage, ...]:
        first = (Stage(0),)
        if self.layer is None:
            return first
        return (*first, frozen_stage(self.layer, self.candidates, self.running, self.memory))

    @torch.no_grad()
    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        return cover(tokens, keep)
