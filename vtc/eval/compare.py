"""Two runs on the same questions: what changed between them, and whether chance explains it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vtc.errors import DataError
from vtc.eval import journal as journals
from vtc.eval.metrics import normalise, paired_change
from vtc.eval.tables import grid, interval, percent, split

HEAD = (
    "method",
    "budget",
    "A %",
    "B %",
    "B - A [95 %]",
    "answers changed",
    "A only right",
    "B only right",
    "McNemar p",
)

Answers = dict[str, dict[str, dict[str, Any]]]  # by cell, by question


def compare(a: Path, b: Path) -> dict[str, Any]:
    """Run ``b`` against run ``a``, cell by cell that both have (``cells``); ``only_a`` and ``only_b`` name the others,
    ``settings`` what else differs. Raises ``DataError`` for folders that are no runs, or of different questions."""
    settings = [settings_of(folder) for folder in (a, b)]
    theirs, mine = (answers_of(folder) for folder in (a, b))
    if different := differences(settings[0]["benchmark"], settings[1]["benchmark"]):
        told = "; ".join(f"{key}: {x!r:.80} and {y!r:.80}" for key, (x, y) in different.items())
        raise DataError(f"{a} and {b} asked different questions (benchmark {told}); compare runs of the same benchmark")
    shared = [name for name in theirs if name in mine]
    for name in shared:
        check_questions(theirs[name], mine[name], f"{name} of {a} and of {b}")
    return {
        "a": str(a),
        "b": str(b),
        "settings": {key: list(two) for key, two in differences(*settings).items() if key != "cells"},
        "cells": {name: drift(theirs[name], mine[name]) for name in shared},
        "only_a": sorted(theirs.keys() - mine.keys()),
        "only_b": sorted(mine.keys() - theirs.keys()),
    }


def settings_of(folder: Path) -> dict[str, Any]:
    """A run's ``config.json``."""
    try:
        settings = json.loads((folder / "config.json").read_text("utf-8"))
        if not isinstance(settings, dict) or not isinstance(settings.get("benchmark"), dict):
            raise ValueError("no benchmark in it")
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is no run folder (config.json: {error}); give a folder vtc eval wrote") from None
    return settings


def answers_of(folder: Path) -> Answers:
    """The lines of a run, without cells that could not be run."""
    out: Answers = {}
    for line in journals.read(folder / "results.jsonl"):
        if "closed" not in line:
            out.setdefault(line["cell"], {})[line["id"]] = line
    return out


def differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ, with both."""
    return {key: (a.get(key), b.get(key)) for key in sorted({*a, *b}) if a.get(key) != b.get(key)}


def check_questions(a: dict[str, Any], b: dict[str, Any], where: str) -> None:
    """Raises ``DataError`` unless both hold the same questions with the same accepted answers."""
    if odd := sorted(a.keys() ^ b.keys()):
        raise DataError(
            f"{where}: {len(odd)} question(s) stand in one run only, the first {odd[0]!r}; finish both runs "
            "(the same vtc eval command goes on), or compare runs of the same questions"
        )
    pairs = [(key, a[key].get("expected"), b[key].get("expected")) for key in a]
    if odd := [key for key, x, y in pairs if x is not None and y is not None and x != y]:
        raise DataError(
            f"{where}: question {odd[0]!r} accepts {a[odd[0]]['expected']!r:.80} in one and "
            f"{b[odd[0]]['expected']!r:.80} in the other; compare runs of the same questions"
        )


def drift(a: dict[str, dict[str, Any]], b: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Figures over the ``questions`` that both answered: accuracies, paired ``change`` (mean and 95 % interval),
    ``answers_changed``, scores higher in one (``a_only``, ``b_only``: right there only) and ``mcnemar_p``."""
    keys = sorted(key for key in a if "score" in a[key] and "score" in b[key])
    before, after = ({key: run[key]["score"] for key in keys} for run in (a, b))
    a_only, b_only = sum(before[k] > after[k] for k in keys), sum(after[k] > before[k] for k in keys)
    return {
        "questions": len(keys),
        "accuracy_a": sum(before.values()) / len(keys) if keys else None,
        "accuracy_b": sum(after.values()) / len(keys) if keys else None,
        "change": paired_change(after, before),
        "answers_changed": sum(normalise(a[k]["answer"]) != normalise(b[k]["answer"]) for k in keys),
        "a_only": a_only,
        "b_only": b_only,
        "mcnemar_p": mcnemar(a_only, b_only),
    }


def mcnemar(a_only: int, b_only: int) -> float:
    """Exact two-sided p of McNemar's test (1947): were both runs as good, each of the questions that only one got right
    would be a fair coin. Of graded scores it is the sign test. 1 without such a question."""
    from scipy.stats import binomtest

    return float(binomtest(a_only, a_only + b_only).pvalue) if a_only + b_only else 1.0


def markdown(found: dict[str, Any]) -> str:
    """The comparison as a table, and what else differs between the runs."""
    rows = []
    for name, cell in found["cells"].items():
        changed = f"{cell['answers_changed']} of {cell['questions']}"
        right = [str(cell["a_only"]), str(cell["b_only"]), f"{cell['mcnemar_p']:.2g}"]
        accuracies = [percent(cell["accuracy_a"]), percent(cell["accuracy_b"])]
        rows.append([*split(name), *accuracies, interval(cell["change"]), changed, *right])
    lines = [f"A: {found['a']}, B: {found['b']}", grid(HEAD, rows)]
    lines += [f"{key}: {a!r:.120} in A, {b!r:.120} in B" for key, (a, b) in found["settings"].items()]
    lines += [
        f"only in {run}: {', '.join(found[key])}" for run, key in (("A", "only_a"), ("B", "only_b")) if found[key]
    ]
    return "\n\n".join(lines)
