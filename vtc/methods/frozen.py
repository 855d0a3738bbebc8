"""Frozen: from some layer on vision tokens do not run; text sees their keys, and chooses anew which in every layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from vtc.methods import register
from vtc.methods.base import Method, Stage


@register("frozen")
@dataclass(frozen=True)
class Frozen(Method):
    """Every decoder layer chooses its keys of the tokens that are there: those that some row of the question looks at
    most in that layer, mean over heads, sizes counted, and one more for the mean of the others. The tokens themselves
    run up to decoder layer ``layer`` (an int, or a fraction of depth); from there on text runs alone, beside keys and
    values of the states they have there.

    The budget counts keys. Alone, all tokens of a picture are candidates; behind another method
    (``divprune+share/frozen``) that one keeps ``candidates`` times the budget. At a budget of all tokens nothing is
    chosen, and only running is saved.

    ``memory=True``: the cache keeps all candidates, and each later turn chooses its keys anew: for conversations about
    one picture. The budget then counts what attention reads, and not the cache's bytes.
    """

    name: ClassVar[str] = "frozen"
    paper: ClassVar[str] = "of this library; docs/adaptive.md"

    layer: int | float = 0.25
    candidates: float = 6.0
    memory: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_candidates(self.name, self.candidates, self.memory)
        super().__post_init__()

    def stages(self) -> tuple[Stage, ...]:
        return (Stage(self.layer, freezes=True, candidates=self.candidates, memory=self.memory),)


def check_candidates(name: str, given: object, memory: object) -> None:
    if not isinstance(memory, bool):
        raise ValueError(f"{name}: memory={memory!r} is not a bool; give True or False")
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not 1 <= given < math.inf:
        raise ValueError(f"{name}: candidates={given!r} is no number of times the budget from 1 on; give one, like 4")
