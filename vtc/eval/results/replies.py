"""What a cell answered, by row, in a few bytes a question: millions of questions fit."""

from __future__ import annotations

import math
from array import array
from itertools import repeat
from typing import Any

from vtc.eval.metrics import normalise


class Replies:
    """``scores``, NaN where there is no answer, and ``answers``, as hashes of their normalised texts: 8 bytes each."""

    def __init__(self) -> None:
        self.scores = array("d")
        self.answers = array("q")

    def add(self, line: dict[str, Any]) -> None:
        """Takes a line of a results file that has a score."""
        put(self.scores, line["row"], line["score"], math.nan)
        put(self.answers, line["row"], hash(normalise(line["answer"])), 0)


def put(column: array, row: int, value: float, empty: float) -> None:
    """Sets a place of a column that grows."""
    if row >= len(column):
        column.extend(repeat(empty, row + 1 - len(column)))
    column[row] = value
