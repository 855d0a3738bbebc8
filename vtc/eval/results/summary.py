"""From the lines of a run to its figures. The same lines give the same bytes, however often the run was interrupted."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from vtc.eval.cells import UNPATCHED
from vtc.eval.metrics import normalise
from vtc.eval.results.beyond_accuracy import Calibration, agreement, subgroups
from vtc.eval.results.replies import Replies
from vtc.eval.results.statistics import paired_change, retention, standard_error


@dataclass
class Tally:
    """Running sums over the answered questions of one cell (and type)."""

    count: int = 0
    errors: int = 0
    score: float = 0.0
    square: float = 0.0
    tokens: float = 0.0

    def add(self, line: dict[str, Any]) -> None:
        if "error" in line:
            self.errors += 1
            return
        self.count += 1
        self.score += line["score"]
        self.square += line["score"] ** 2
        self.tokens += line["tokens"]

    def figures(self) -> dict[str, Any]:
        n = self.count
        accuracy = self.score / n if n else math.nan
        error = standard_error(accuracy, self.square / n, n) if n else math.nan
        tokens = self.tokens / n if n else math.nan
        return {"accuracy": accuracy, "stderr": error, "tokens": tokens, "questions": n, "errors": self.errors}


@dataclass
class Cell:
    whole: Tally = field(default_factory=Tally)
    groups: dict[str, Tally] = field(default_factory=dict)
    types: dict[str, Tally] = field(default_factory=dict)
    votes: dict[str, Counter[str]] = field(default_factory=dict)  # what each answer would score in all, by type
    replies: Replies = field(default_factory=Replies)
    calibration: Calibration = field(default_factory=Calibration)


def accepted(expected: list[str]) -> dict[str, float]:
    """Every expected answer counts fully."""
    return {normalise(answer): 1.0 for answer in expected}


def summarise(
    lines: Iterable[dict[str, Any]],
    names: list[str],
    costs: dict[str, dict[str, Any]],
    credits: Callable[[list[str]], dict[str, float]] = accepted,
) -> dict[str, Any]:
    """The figures of every cell in ``names``, in that order: accuracy, standard error, retention, paired
    change, tokens; accuracy by type, agreement, calibration and subgroups (``vtc.eval.beyond``) too.

    ``costs``: the deterministic figures that ``measure.cost`` gave for each cell; ``credits``: what the answers a
    question expects would score.
    """
    cells = {name: Cell() for name in names}
    closed: dict[str, dict[str, Any]] = {}
    kinds: dict[str, str] = {}
    for line in lines:
        if "closed" in line:
            closed[line["cell"]] = line
            continue
        cell, kind, group = cells[line["cell"]], line.get("type", ""), line.get("group", "")
        kinds.setdefault(kind, group)
        for tally in (
            cell.whole,
            cell.types.setdefault(kind, Tally()),
            cell.groups.setdefault(group, Tally()),
        ):
            tally.add(line)
        if "error" not in line:
            cell.replies.add(line)
            cell.calibration.add(line)
            if line["cell"] == UNPATCHED:  # the floor needs no other's
                cell.votes.setdefault(kind, Counter()).update(credits(line["expected"]))
    base = cells[UNPATCHED]
    low = floor(base)
    out = {}
    for name, cell in cells.items():
        if name in closed:
            out[name] = {"closed": closed[name]["closed"], "least": closed[name].get("least")}
            continue
        figures = cell.whole.figures()
        figures["retention"] = retention(figures["accuracy"], base.whole.figures()["accuracy"], low)
        figures["change"] = paired_change(cell.replies.scores, base.replies.scores)
        figures["types"] = {kind: tally.figures() for kind, tally in sorted(cell.types.items())}
        figures["groups"] = {group: tally.figures() for group, tally in sorted(cell.groups.items())}
        figures |= {key: costs.get(name, {}).get(key) for key in ("rows", "kv_bytes", "flops")}
        out[name] = figures | beyond(cell, base)
    return {"cells": out, "order": names, "floor": low, "groups_of_types": dict(sorted(kinds.items()))}


def beyond(cell: Cell, base: Cell) -> dict[str, Any]:
    """What the accuracy hides: agreement with the unpatched model, calibration, and the types and groups that pay."""
    types, groups = (
        subgroups(*({name: tally.figures() for name, tally in each.items()} for each in pair))
        for pair in ((cell.types, base.types), (cell.groups, base.groups))
    )
    return {
        "agreement": agreement(cell.replies, base.replies),
        "calibration": cell.calibration.figures(),
        "subgroups": {"types": types, "groups": groups},
    }


def add_metrics(
    summary: dict[str, Any],
    read: Callable[[str], Iterable[dict[str, Any]]],
    aggregate: Callable[[Iterable[dict[str, Any]]], dict[str, float]],
) -> None:
    """The benchmark's own figures under ``metrics`` of each cell that has scores. ``read`` gives a cell's lines,
    so that no more than one cell's answers are held."""
    for name, cell in summary["cells"].items():
        if cell.get("questions"):
            cell["metrics"] = aggregate(x for x in read(name) if x["cell"] == name and "score" in x)


def floor(cell: Cell) -> float:
    """What a blind answerer reaches: each type's best answer, always given."""
    hits = sum(votes.most_common(1)[0][1] for votes in cell.votes.values() if votes)
    return hits / cell.whole.count if cell.whole.count else 0.0
