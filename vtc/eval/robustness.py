"""Do methods make a model brittle? The same questions once more under each corruption, and what each cell loses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any, cast

from vtc.eval import journal as journals
from vtc.eval.benchmarks import Benchmark
from vtc.eval.cells import UNPATCHED
from vtc.eval.corruptions import KINDS, SEVERITY, Corrupted
from vtc.eval.files import write_json, write_text
from vtc.eval.metrics import paired_change
from vtc.eval.tables import grid, interval, percent, split

Scores = dict[str, dict[str, float]]  # by cell, by question


def measure(folder: Path, benchmark: Benchmark, ask: Callable[[Benchmark, Path], object]) -> dict[str, Any]:
    """Runs ``ask`` on the spoiled ``benchmark``, a kind a folder under ``folder/robustness``; writes
    ``robustness.json`` and ``robustness.md`` beside the clean run in ``folder`` and gives the figures."""
    spoiled = {}
    for kind in KINDS:
        there = folder / "robustness" / kind
        ask(cast(Benchmark, Corrupted(benchmark, kind)), there)
        spoiled[kind] = scores_of(there)
    found = {"severity": SEVERITY, "cells": drops(scores_of(folder), spoiled)}
    write_json(folder / "robustness.json", found)
    write_text(folder / "robustness.md", markdown(found))
    return found


def scores_of(folder: Path) -> Scores:
    """The scores of a run's answers."""
    out: Scores = defaultdict(dict)
    for line in journals.read(folder / "results.jsonl"):
        if "score" in line:
            out[line["cell"]][line["id"]] = line["score"]
    return dict(out)


def drops(clean: Scores, spoiled: Mapping[str, Scores]) -> dict[str, Any]:
    """By cell, by kind, over the ``questions`` that the cell answered both times: ``accuracy`` when spoiled; ``drop``
    from the clean accuracy; ``excess``, the drop less the unpatched model's, with its 95 % interval."""
    out: dict[str, Any] = {}
    for name, before in clean.items():
        out[name] = {}
        for kind, scores in spoiled.items():
            after = scores.get(name, {})
            mine, base = lost(before, after), lost(clean.get(UNPATCHED, {}), scores.get(UNPATCHED, {}))
            out[name][kind] = {
                "questions": len(mine),
                "accuracy": mean(after[key] for key in mine) if mine else None,
                "drop": mean(mine.values()) if mine else None,
                "excess": paired_change(mine, base),
            }
    return out


def lost(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """What each question's score fell by."""
    return {key: score - after[key] for key, score in before.items() if key in after}


def markdown(found: dict[str, Any]) -> str:
    """A row a cell: of each corruption the drop, and in brackets what is beyond the unpatched model's."""
    rows = []
    for name, kinds in found["cells"].items():
        words = [
            percent(k["drop"]) + ("" if name == UNPATCHED else f" ({interval(k['excess'])})") for k in kinds.values()
        ]
        rows.append([*split(name), *words])
    strength = ", ".join(f"{kind} {value}" for kind, value in found["severity"].items())
    note = (
        "Points of accuracy lost under each corruption, and in brackets how many more than the unpatched model loses, "
        "with the 95 % bootstrap interval over questions. A cell that is wrong on clean pictures has less to lose. "
        f"Severities: {strength} (docs/evaluation.md says of what)."
    )
    return "\n\n".join([grid(["method", "budget", *KINDS], rows), note]) + "\n"
