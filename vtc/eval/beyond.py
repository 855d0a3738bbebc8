"""What an accuracy hides: other answers, uncertain answers, and question types that pay for the rest."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import mean
from typing import Any

from vtc.eval.cells import UNPATCHED
from vtc.eval.metrics import normalise
from vtc.eval.reliability import expected_calibration_error, reliability

Lines = Mapping[str, dict[str, Any]]  # of one cell, by question


def beyond(summary: dict[str, Any], lines: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By cell name ``agreement``, ``calibration`` and ``subgroups``; cells that cannot be run are left out."""
    asked: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for line in lines:
        if "answer" in line:
            asked[line["cell"]][line["id"]] = line
    cells, base = summary["cells"], summary["cells"][UNPATCHED]
    return {
        name: {
            "agreement": agreement(asked[name], asked[UNPATCHED]),
            "calibration": calibration(asked[name]),
            "subgroups": {key: subgroups(cell[key], base[key]) for key in ("types", "groups")},
        }
        for name, cell in cells.items()
        if "closed" not in cell
    }


def agreement(mine: Lines, theirs: Lines) -> dict[str, Any] | None:
    """Shares of the ``questions`` that both have answered: the ``same`` normalised answer, a score that fell
    (``right_to_wrong``) and one that rose (``wrong_to_right``). None without such a question."""
    pairs = [(mine[key], theirs[key]) for key in mine.keys() & theirs.keys()]
    if not pairs:
        return None
    return {
        "questions": len(pairs),
        "same": mean(normalise(a["answer"]) == normalise(b["answer"]) for a, b in pairs),
        "right_to_wrong": mean(a["score"] < b["score"] for a, b in pairs),
        "wrong_to_right": mean(a["score"] > b["score"] for a, b in pairs),
    }


def calibration(lines: Lines) -> dict[str, Any] | None:
    """``ece``, the mean ``confidence`` and the ``bins`` of a reliability diagram. None without answers, or where
    a probability is not a number (logits overflowed)."""
    sure = [line["confidence"] for line in lines.values()]
    if not sure or any(math.isnan(p) for p in sure):
        return None
    bins = reliability(sure, [line["score"] for line in lines.values()])
    return {"ece": expected_calibration_error(bins), "confidence": mean(sure), "bins": bins}


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
