"""What an accuracy hides: other answers, uncertain answers, and question types that pay for the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from vtc.eval.metrics.ece import Reliability
from vtc.eval.results.replies import Replies


def agreement(mine: Replies, theirs: Replies) -> dict[str, Any] | None:
    """Shares of the ``questions`` that both have answered: the ``same`` normalised answer, a score that fell
    (``right_to_wrong``) and one that rose (``wrong_to_right``). None without such a question."""
    both = min(len(mine.scores), len(theirs.scores))
    change = np.asarray(mine.scores)[:both] - np.asarray(theirs.scores)[:both]
    answered = ~np.isnan(change)
    if not answered.any():
        return None
    same = np.asarray(mine.answers)[:both] == np.asarray(theirs.answers)[:both]
    return {
        "questions": int(answered.sum()),
        "same": float(same[answered].mean()),
        "right_to_wrong": float((change[answered] < 0).mean()),
        "wrong_to_right": float((change[answered] > 0).mean()),
    }


class Calibration:
    """How well the confidence of a cell's answers is calibrated, taken line by line."""

    def __init__(self) -> None:
        self.reliability = Reliability()
        self.unknown = 0

    def add(self, line: dict[str, Any]) -> None:
        """Takes a line of a results file that has a score."""
        sure = line.get("confidence", math.nan)  # answers from before it was kept have none
        if math.isnan(sure):
            self.unknown += 1
        else:
            self.reliability.add(sure, line["score"])

    def figures(self) -> dict[str, Any] | None:
        """``ece``, the mean ``confidence`` and the ``bins`` of a reliability diagram. None without answers, or where
        a probability is not a number (logits overflowed)."""
        if self.unknown or not any(self.reliability.counts):
            return None
        found = self.reliability
        return {"ece": found.error(), "confidence": found.mean_confidence(), "bins": found.bins()}


def subgroups(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Of the types (or groups) that both have answered: the ``worst`` one, its ``accuracy``, ``questions`` and ``drop``
    from the unpatched model; the ``gap`` between the best and the worst, and the unpatched model's
    (``unpatched_worst``, ``unpatched_gap``); the one that lost most (``most_harmed``, ``most_harmed_drop``). None where
    there are fewer than two."""
    names = sorted(
        name for name in mine.keys() & theirs.keys() if mine[name]["questions"] and theirs[name]["questions"]
    )
    if len(names) < 2:
        return None
    now = {name: mine[name]["accuracy"] for name in names}
    before = {name: theirs[name]["accuracy"] for name in names}
    worst, harmed = min(names, key=now.__getitem__), max(names, key=lambda name: before[name] - now[name])
    return {
        "worst": worst,
        "accuracy": now[worst],
        "questions": mine[worst]["questions"],
        "drop": before[worst] - now[worst],
        "gap": max(now.values()) - now[worst],
        "unpatched_worst": min(names, key=before.__getitem__),
        "unpatched_gap": max(before.values()) - min(before.values()),
        "most_harmed": harmed,
        "most_harmed_drop": before[harmed] - now[harmed],
    }
