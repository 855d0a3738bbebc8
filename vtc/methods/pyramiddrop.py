"""PyramidDrop: drop more tokens the deeper the decoder goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vtc.methods import register
from vtc.methods.base import Method, Stage, depths
from vtc.signals.base import Signal
from vtc.signals.text_attention import TextAttention
from vtc.tokens import Reduction, VisionTokens


@register("pyramiddrop")
@dataclass(frozen=True)
class PyramidDrop(Method):
    """Before each of ``layers`` (increasing; ints from 0, or fractions of depth) keep the tokens that the prompt's last
    row attends to most in that layer, recomputed from the states at its entry, mean over heads. Stage s keeps
    ``ratio ** (s + 1)`` of the tokens, with the one ratio that meets the budget (the paper: one half).

    PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction, arXiv
    2410.17247. Departs from the paper: positions stay the original ones (there, renumbered after every stage); in
    training too the prompt's last row ranks (there, the rows before the answers).
    """

    name: ClassVar[str] = "pyramiddrop"
    paper: ClassVar[str] = (
        "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction, "
        "arXiv 2410.17247"
    )

    layers: tuple[int | float, ...] = (0.25, 0.5, 0.75)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", depths(self.name, self.layers))
        super().__post_init__()

    def stages(self) -> tuple[Stage, ...]:
        return tuple(Stage(layer, power) for power, layer in enumerate(self.layers, start=1))

    def signals(self, stage: int) -> tuple[Signal, ...]:
        return (TextAttention("next"),)

    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        return Reduction.top(signals[TextAttention("next")], keep, tokens)
