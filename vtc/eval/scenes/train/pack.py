"""Many questions about one picture in one row: block mask, restarted positions; equal to asking one at a time."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vtc.eval.scenes.ask import TWO_HOP, TYPES, Question, ask_about
from vtc.eval.scenes.draw import SIZE, Object
from vtc.eval.scenes.train.labels import position
from vtc.eval.scenes.train.model import TOKENS
from vtc.eval.scenes.vocabulary import BOS, EOS, IDS, IMAGE, PAD, encode

PREFIX = (BOS, IDS["USER:"], *([IMAGE] * TOKENS))
"""What every prompt starts with."""
LENGTH = 352
"""Every row is as long, so that the compiled layers see one shape; a question that does not fit is left out."""
PIXELS = SIZE / 2
"""Pixels of one unit of position."""


@dataclass
class Batch:
    """Packed rows and what is to be learned from them."""

    ids: Tensor
    """int [B, L]"""
    mask: Tensor
    """bool [B, 1, L, L]"""
    positions: Tensor
    """int [B, L]"""
    answers: Tensor
    """int [A, 4]: row, column before the answer, answer, question type (-1: the end of the text)."""
    mentions: Tensor
    """float [M, 5]: row, column of a name, y, x of what it names, 1 if that is in the picture."""
    targets: Tensor
    """float [T, 5]: row, column before the answer, y, x of the object that holds it, hops."""
    offsets: Tensor
    """float [R, 4]: row, column before the answer, y and x of the first named minus the second."""


@dataclass
class _Row:
    """One picture's prompt while it grows."""

    number: int
    ids: list[int] = field(default_factory=lambda: list(PREFIX))
    segments: list[int] = field(default_factory=lambda: [0] * len(PREFIX))
    positions: list[int] = field(default_factory=lambda: list(range(len(PREFIX))))


@dataclass
class _Notes:
    """What is to be learned, while rows grow."""

    answers: list[tuple[int, ...]] = field(default_factory=list)
    mentions: list[tuple[float, ...]] = field(default_factory=list)
    targets: list[tuple[float, ...]] = field(default_factory=list)
    offsets: list[tuple[float, ...]] = field(default_factory=list)

    def add(self, row: int, base: int, last: int, question: Question) -> None:
        """Notes of one question whose first word is at column `base` and whose ASSISTANT: is at `last`."""
        self.answers.append((row, last, IDS[question.answer], TYPES.index(question.type)))
        self.answers.append((row, last + 1, EOS, -1))
        for word, item in question.mentions:
            place = position(item.center) if item else (0.0, 0.0)
            self.mentions.append((row, base + word, *place, float(item is not None)))
        middles = [position(((b[0] + b[2]) / 2, (b[1] + b[3]) / 2)) for b in question.evidence]
        if question.type == "relation":
            (ay, ax), (by, bx) = middles
            self.offsets.append((row, last, ay - by, ax - bx))
        elif question.type in TWO_HOP:
            self.targets.append((row, last, *middles[1], 2))
        elif question.type not in ("count", "exist"):
            self.targets.append((row, last, *middles[0], 1))


def _append(row: _Row, notes: _Notes, segment: int, question: Question) -> None:
    """One more question, unless the row is full."""
    ids = [*encode(question.text), IDS["ASSISTANT:"], IDS[question.answer]]
    base = len(row.ids)
    if base + len(ids) > LENGTH:
        return
    notes.add(row.number, base, base + len(ids) - 2, question)
    row.ids += ids
    row.segments += [segment] * len(ids)
    row.positions += range(len(PREFIX), len(PREFIX) + len(ids))


def _padded(lists: list[list[int]], value: int) -> Tensor:
    return torch.tensor([x + [value] * (LENGTH - len(x)) for x in lists])


def pack(scenes: list[tuple[Object, ...]], rng: np.random.Generator, count: int, weights: list[float]) -> Batch:
    """Up to `count` questions about each of these pictures, one row a picture."""
    rows, notes = [_Row(i) for i in range(len(scenes))], _Notes()
    for row, objects in zip(rows, scenes, strict=True):
        for number, question in enumerate(ask_about(objects, rng, count, weights=weights)):
            _append(row, notes, number + 1, question)
    segments = _padded([r.segments for r in rows], -1)
    visible = (segments[:, None, :] == 0) | (segments[:, :, None] == segments[:, None, :])
    return Batch(
        ids=_padded([r.ids for r in rows], PAD),
        mask=(visible & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril())[:, None],
        positions=_padded([r.positions for r in rows], 0),
        answers=torch.tensor(notes.answers),
        mentions=torch.tensor(notes.mentions).reshape(-1, 5),
        targets=torch.tensor(notes.targets).reshape(-1, 5),
        offsets=torch.tensor(notes.offsets).reshape(-1, 4),
    )
