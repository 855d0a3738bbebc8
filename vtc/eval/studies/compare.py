"""Two runs on the same questions: what changed between them, and whether chance explains it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vtc.errors import DataError
from vtc.eval.metrics import normalise
from vtc.eval.report.tables import grid, interval, percent, split
from vtc.eval.results.json_lines import read
from vtc.eval.results.settings import run_settings
from vtc.eval.results.statistics import paired_change
from vtc.files.escape import markdown as escape

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

Answers = dict[tuple[int, str], dict[str, Any]]  # lines of one cell; a broken row's name may be an id, too


def compare(a: Path, b: Path) -> dict[str, Any]:
    """Run ``b`` against run ``a``, cell by cell that both have (``cells``); ``only_a`` and ``only_b`` name the others,
    ``settings`` what else differs. Raises ``DataError`` for folders that are no runs, or of different questions."""
    settings = [run_settings(folder) for folder in (a, b)]
    if different := differences(settings[0]["benchmark"], settings[1]["benchmark"]):
        told = "; ".join(f"{key}: {x!r:.80} and {y!r:.80}" for key, (x, y) in different.items())
        raise DataError(f"{a} and {b} asked different questions (benchmark {told}); compare runs of the same benchmark")
    theirs, mine = cells_of(a), cells_of(b)
    return {
        "a": str(a),
        "b": str(b),
        "settings": {key: list(two) for key, two in differences(*settings).items() if key != "cells"},
        "cells": {name: drift(*both_of(a, b, name)) for name in theirs if name in mine},
        "only_a": [name for name in theirs if name not in mine],
        "only_b": [name for name in mine if name not in theirs],
    }


def cells_of(folder: Path) -> list[str]:
    """The cells of a run that could be run."""
    found: dict[str, bool] = {}
    for line in read(folder / "results.jsonl"):
        found[line["cell"]] = found.get(line["cell"], True) and "closed" not in line
    return [name for name, ran in found.items() if ran]


def both_of(a: Path, b: Path, cell: str) -> tuple[Answers, Answers]:
    """One cell's lines in both runs, which must be of the same questions; no more than these are held at once."""
    found = ((line for line in read(folder / "results.jsonl", cell) if line["cell"] == cell) for folder in (a, b))
    theirs, mine = ({(line["row"], line["id"]): line for line in lines} for lines in found)
    check_questions(theirs, mine, f"{cell} of {a} and of {b}")
    return theirs, mine


def differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys whose values differ, with both."""
    return {key: (a.get(key), b.get(key)) for key in sorted({*a, *b}) if a.get(key) != b.get(key)}


def check_questions(a: Answers, b: Answers, where: str) -> None:
    """Raises ``DataError`` unless both hold the same questions with the same accepted answers."""
    if odd := sorted(a.keys() ^ b.keys()):
        raise DataError(
            f"{where}: {len(odd)} question(s) stand in one run only, the first {odd[0][1]!r}; finish both runs "
            "(the same vtc eval command goes on), or compare runs of the same questions"
        )
    pairs = [(key, a[key].get("expected"), b[key].get("expected")) for key in a]
    if odd := [key for key, x, y in pairs if x is not None and y is not None and x != y]:
        raise DataError(
            f"{where}: question {odd[0][1]!r} accepts {a[odd[0]]['expected']!r:.80} in one and "
            f"{b[odd[0]]['expected']!r:.80} in the other; compare runs of the same questions"
        )


def drift(a: Answers, b: Answers) -> dict[str, Any]:
    """Figures over the ``questions`` that both answered: accuracies, paired ``change`` (mean and 95 % interval),
    ``answers_changed``, scores higher in one (``a_only``, ``b_only``: right there only) and ``mcnemar_p``."""
    keys = [key for key in a if "score" in a[key] and "score" in b[key]]
    before, after = ([run[key]["score"] for key in keys] for run in (a, b))
    pairs = list(zip(before, after, strict=True))
    a_only, b_only = sum(x > y for x, y in pairs), sum(y > x for x, y in pairs)
    return {
        "questions": len(keys),
        "accuracy_a": sum(before) / len(keys) if keys else None,
        "accuracy_b": sum(after) / len(keys) if keys else None,
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
    lines = [f"A: {escape(found['a'])}, B: {escape(found['b'])}", grid(HEAD, rows)]
    for key, (a, b) in found["settings"].items():
        lines.append(f"{escape(key)}: {escape(f'{a!r:.120}')} in A, {escape(f'{b!r:.120}')} in B")
    for run, key in (("A", "only_a"), ("B", "only_b")):
        lines += [f"only in {run}: {escape(', '.join(found[key]))}"] if found[key] else []
    return "\n\n".join(lines)
