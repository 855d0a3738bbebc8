"""Frozen: from some layer on few vision tokens run; text chooses its keys of all of them, anew in every layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from vtc.kernels.greedy_diverse import greedy_diverse
from vtc.methods import register
from vtc.methods.base import Method, Stage
from vtc.signals.base import Signal
from vtc.tokens import Reduction, VisionTokens, cut


@register("frozen")
@dataclass(frozen=True)
class Frozen(Method):
    """Every decoder layer chooses its keys of the tokens that are there: those that some row of the question looks at
    most in that layer, mean over heads, sizes counted, and one more for the mean of the others. The tokens themselves
    run up to decoder layer ``layer`` (an int, or a fraction of depth); from there on text and the part ``running`` of
    them do, those that cover the picture (greedy max-min diversity of their states), beside keys and values of the
    states in which the others stopped. ``running=0``: text alone.

    The budget counts keys. Alone, all tokens of a picture are candidates; behind another method
    (``divprune+share/frozen``) that one keeps ``candidates`` times the budget. At a budget of all tokens nothing is
    chosen, and only running is saved.

    ``memory=True``: the cache keeps all candidates, and each later turn chooses its keys anew: for conversations about
    one picture. The budget then counts what attention reads, and not the cache's bytes.
    """

    name: ClassVar[str] = "frozen"
    paper: ClassVar[str] = "of this library; docs/adaptive.md"

    layer: int | float = 0.125
    candidates: float = 6.0
    running: float = 0.33
    memory: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_frozen(self.name, self.candidates, self.running, self.memory)
        super().__post_init__()

    def stages(self) -> tuple[Stage, ...]:
        return (frozen_stage(self.layer, self.candidates, self.running, self.memory),)

    @torch.no_grad()
    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        return cover(tokens, keep)


def cover(tokens: VisionTokens, keep: list[int]) -> Reduction:
    """Those that cover the picture: greedy max-min diversity, as DivPrune."""
    return Reduction.keep(cut(greedy_diverse(tokens.features, max(keep), "maxmin", tokens.valid), keep), tokens)


def frozen_stage(layer: int | float, candidates: float, running: float, memory: bool) -> Stage:
    return Stage(layer, freezes=True, candidates=candidates, running=running, memory=memory)


def check_frozen(name: str, given: object, running: object, memory: object) -> None:
    if isinstance(running, bool) or not isinstance(running, (int, float)) or not 0 <= running < 1:
        raise ValueError(f"{name}: running={running!r} is no part of the candidates, from 0 on and below 1; give 0.5")
    if not isinstance(memory, bool):
        raise ValueError(f"{name}: memory={memory!r} is not a bool; give True or False")
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 1 <= given < math.inf:
        raise ValueError(f"{name}: candidates={given!r} is no number of times the budget from 1 on; give one, like 4")
