"""What is known of one forward: which rows are vision tokens, which live on, and what each decoder layer does."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vtc.budget.layer_budget import LayerBudget
from vtc.engine.memory import Quota, has_mean
from vtc.engine.placeholders import Layout
from vtc.engine.stopwatch import Stopwatch
from vtc.signals.base import Signal
from vtc.tokens import Reduction, VisionTokens


@dataclass
class Remaining:
    """The vision tokens that still live: ``[I, N]`` row, valid, size; grid ``[I, N, 3]``; newline_row ``[I, M]`` (-1
    padded) with newline_grid; count and newlines as Python ints."""

    row: Tensor
    valid: Tensor
    size: Tensor
    grid: Tensor
    count: list[int]
    newline_row: Tensor
    newline_grid: Tensor
    newlines: list[int]


@dataclass(eq=False)
class Rows:
    """Rows of the prompts that a layer runs on: rows ``[B, K]`` (ascending), valid ``[B, K]`` or None (all), log_size
    ``[B, K]`` or None (all 0); inside ``[B, K]``: where they stand in the incoming states."""

    rows: Tensor
    valid: Tensor | None
    log_size: Tensor | None
    inside: Tensor


@dataclass(eq=False)
class Cut(Rows):
    """What one stage did: the reduction of the tokens that lived, and the rows of the prompts it leaves.

    keep: slots of each picture; position ``[I, N]``: where the tokens stood in the incoming states.
    """

    tokens: VisionTokens
    reduction: Reduction
    keep: list[int]
    position: Tensor


@dataclass(eq=False)
class Candidates:
    """Vision tokens of which every layer chooses its keys anew. place: their rows of the prompts, filled up where
    prompts have fewer; count: how many each prompt has; keys: how many of them each layer has as keys; text: the other
    rows; asking ``[B, R]``: which of these rank the candidates, -1 padded."""

    place: Rows
    count: list[int]
    keys: list[int]
    text: Rows
    asking: Tensor

    @property
    def with_mean(self) -> list[bool]:
        """Of each prompt, whether one of its keys is the mean of the candidates that are none."""
        return [has_mean(keys, count) for keys, count in zip(self.keys, self.count, strict=True)]

    @cached_property
    def quota(self) -> Quota:
        return Quota.of(self.keys, self.count, self.text.rows.device)

    @property
    def chooses(self) -> bool:
        """Whether not all of them are keys."""
        return self.keys != self.count


@dataclass(eq=False)
class GoingOn:
    """From the layer on in which vision tokens stop. rows: those that run, which are text and the candidates that go
    on, ``keep`` of each picture; vision: the latter; stopped: the other candidates; order
    ``[B, M]``: where each candidate stands among ``vision`` and then ``stopped``. ``vision``, and the text of
    ``candidates``, stand inside ``rows``."""

    candidates: Candidates
    rows: Rows
    stopped: Rows
    keep: list[int]
    vision: Rows
    order: Tensor

    @property
    def none(self) -> bool:
        """Whether text runs alone."""
        return not any(self.keep)


@dataclass
class LayerPlan:
    """What one decoder layer does to the states that reach it; kept, so that gradient checkpointing can replay it."""

    enter: Cut | None = None  # a stage stands here
    regather: Rows | None = None  # the states arrive full length again: take these rows, which ran before
    rows: Cut | None = None  # the rows that are there (None: all)
    runs: Rows | None = None  # those of them that the layer runs on, the others leave it as they came (None: all)
    keys: Cut | None = None  # the rows whose keys its rows see (None: those of ``rows``); cut inside its attention
    candidates: Candidates | None = None  # of which it chooses its keys
    chosen: Tensor | None = None  # ``[B, K]``, -1 padded: those of them that are keys (None: all)
    restore: bool = False  # full-length states leave the layer


@dataclass
class Prefill:
    """One forward that brings pictures. ``ids``: modality -> placeholder rows, bool ``[B, N]`` on the CPU; ``padding``
    bool ``[B, N]`` on the CPU, True = real, or None (all real); ``ends [B]`` on the CPU: before which row each prompt
    ends, where what is learned from it or drafted for it comes in the same forward, or None (all N rows)."""

    ids: dict[str, Tensor]
    input_ids: Tensor | None
    padding: Tensor | None
    length: int
    batch: int
    clock: Stopwatch
    ends: Tensor | None = None
    grad: bool = False
    layout: Layout = field(
        init=False
    )  # this and ``remaining`` exist once the pass is ``opened`` at the first decoder layer
    remaining: Remaining = field(init=False)
    layer_budget: LayerBudget = field(init=False)  # where every layer spends a share of the budget of its own
    signals: dict[int, dict[Signal, Tensor]] = field(default_factory=dict)  # by layer, where rows skip layers
    at_input: dict[Signal, Tensor] = field(default_factory=dict)  # of signals that ask to see the decoder's input
    opened: bool = False
    brings: bool = True  # pictures come with it
    remembers: bool = False  # candidates that are no keys stay in the cache
    unasked: bool = False  # nobody asks yet: every candidate stays for who will
    keeps: list[tuple[int, ...]] = field(default_factory=list)  # tokens kept, by picture and stage
    needs: list[float] = field(default_factory=list)  # of each picture, where the method spends by need
    over: bool = False  # some picture must shrink
    text: tuple[Cut | None, Rows] | None = None  # the text rows behind that cut
    candidates: tuple[Cut | None, Candidates] | None = None  # behind that cut
    going: GoingOn | None = None  # from the layer on in which candidates stop
    stopped: Tensor | None = None  # ``[B, M, D]``: the states in which candidates stopped
    between: int = 0  # after how many of the first layers somebody reads full-length states
    cuts: list[Cut] = field(default_factory=list)
    plans: dict[int, LayerPlan] = field(default_factory=dict)
    captured: dict[tuple[int, Signal], Tensor] = field(default_factory=dict)  # by the layer of its hook
    tables: dict[int, Any] = field(default_factory=dict)  # rotary tables by layer: which forward a replay belongs to
    restored: tuple[Tensor, Tensor] | None = None  # (full, short) states as they left the last restoring layer
    rows_by_layer: dict[int, int] = field(default_factory=dict)
    past_by_layer: dict[int, int] = field(default_factory=dict)

    @property
    def full(self) -> list[int]:
        """Tokens of each picture, newlines included."""
        return [n + m for n, m in zip(self.layout.count, self.layout.newlines, strict=True)]

    @property
    def asks(self) -> bool:
        """Whether some row is of a prompt: what ``generate`` drafted and verifies is not."""
        return self.ends is None or bool((self.ends > 0).any())

    @property
    def behind(self) -> int:
        """How many rows stand behind every prompt's end: a cache may be asked to give them back."""
        count = 0 if self.ends is None else self.length - int(self.ends.max())
        real = count == 0 or self.padding is None or bool(self.padding[:, self.length - count :].all())
        return count if real else 0

    @property
    def last_cut(self) -> Cut | None:
        return self.cuts[-1] if self.cuts else None

    def last_row(self, there: Rows | None) -> Tensor:
        """``[B]``: where each prompt's last real row stands among the rows that are ``there`` (None: all)."""
        last = torch.full((self.batch,), self.length - 1)
        if self.padding is not None:
            last = torch.where(self.padding, torch.arange(self.length), -1).amax(dim=1).clamp(min=0)
        if self.ends is not None:
            last = torch.minimum(last, self.ends - 1)
        last = last.to(self.layout.row.device)
        return last if there is None else torch.searchsorted(there.rows, last[:, None])[:, 0]
