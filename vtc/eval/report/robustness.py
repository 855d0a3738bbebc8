"""Do methods make a model brittle? The same questions once more under each corruption, and what each cell loses."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from vtc.eval.asking.corruptions import KINDS, SEVERITY, Corrupted
from vtc.eval.benchmarks import Benchmark
from vtc.eval.cells import UNPATCHED
from vtc.eval.distributed import ALONE, World
from vtc.eval.report.tables import grid, interval, percent, split
from vtc.eval.results.json_lines import read
from vtc.eval.results.replies import put
from vtc.eval.results.statistics import paired_change
from vtc.files.atomic import write_json, write_text

Scores = dict[str, array]  # by cell, by row; NaN where there is none


def measure(folder: Path, benchmark: Benchmark, ask: Callable[..., object], world: World = ALONE) -> dict[str, Any]:
    """Runs ``ask(spoiled benchmark, output=folder)``, a kind a folder under ``folder/robustness``; writes
    ``robustness.json`` and ``robustness.md`` beside the clean run in ``folder`` and gives the figures. Of several
    ranks only the first has figures to give."""
    for kind in KINDS:
        ask(cast(Benchmark, Corrupted(benchmark, kind)), output=folder / "robustness" / kind)
    if not world.first:
        return {}
    spoiled = {kind: scores_of(folder / "robustness" / kind) for kind in KINDS}
    clean = scores_of(folder)
    found = {"severity": SEVERITY, "order": list(clean), "cells": drops(clean, spoiled)}
    write_json(folder / "robustness.json", found)
    write_text(folder / "robustness.md", markdown(found))
    return found


def scores_of(folder: Path) -> Scores:
    """The scores of a run's answers."""
    out: Scores = {}
    for line in read(folder / "results.jsonl"):
        if "score" in line:
            put(out.setdefault(line["cell"], array("d")), line["row"], line["score"], math.nan)
    return out


def drops(clean: Scores, spoiled: Mapping[str, Scores]) -> dict[str, Any]:
    """By cell, by kind, over the ``questions`` that the cell answered both times: ``accuracy`` when spoiled; ``drop``
    from the clean accuracy; ``excess``, the drop less the unpatched model's, with its 95 % interval."""
    none = array("d")
    out: dict[str, Any] = {}
    for name, before in clean.items():
        out[name] = {}
        for kind, scores in spoiled.items():
            mine = lost(before, scores.get(name, none))
            base = lost(clean.get(UNPATCHED, none), scores.get(UNPATCHED, none))
            both = ~np.isnan(mine)
            out[name][kind] = {
                "questions": int(both.sum()),
                "accuracy": float(np.asarray(scores[name])[: len(mine)][both].mean()) if both.any() else None,
                "drop": float(mine[both].mean()) if both.any() else None,
                "excess": paired_change(mine, base),
            }
    return out


def lost(before: array, after: array) -> np.ndarray:
    """What each question's score fell by; NaN where it was not answered both times."""
    both = min(len(before), len(after))
    return np.asarray(before)[:both] - np.asarray(after)[:both]


def table(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows, one a cell: of each corruption the drop, and in brackets what is beyond the unpatched model's."""
    kinds = [kind for kind in KINDS if kind in found["severity"]]  # a file's keys are sorted
    rows = []
    for name in found["order"]:
        each = [found["cells"][name][kind] for kind in kinds]
        words = [percent(k["drop"]) + ("" if name == UNPATCHED else f" ({interval(k['excess'])})") for k in each]
        rows.append([*split(name), *words])
    return ["method", "budget", *kinds], rows


def note(found: dict[str, Any]) -> str:
    """What the table says."""
    strength = ", ".join(f"{kind} {found['severity'][kind]}" for kind in KINDS if kind in found["severity"])
    return (
        "Points of accuracy lost under each corruption, and in brackets how many more than the unpatched model loses, "
        "with the 95 % bootstrap interval over questions. A cell that is wrong on clean pictures has less to lose. "
        f"Severities: {strength} (docs/evaluation.md says of what)."
    )


def markdown(found: dict[str, Any]) -> str:
    return "\n\n".join([grid(*table(found)), note(found)]) + "\n"
