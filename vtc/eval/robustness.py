"""Do methods make a model brittle? The same questions once more under each corruption, and what each cell loses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from vtc.eval.benchmarks import Benchmark
from vtc.eval.cells import UNPATCHED
from vtc.eval.corruptions import KINDS, SEVERITY, Corrupted
from vtc.eval.files import write_json, write_text
from vtc.eval.tables import grid, number, percent, split

Summary = dict[str, Any]


def measure(clean: Summary, benchmark: Benchmark, folder: Path, ask: Callable[[Benchmark, Path], Summary]) -> Summary:
    """Runs ``ask`` on the spoiled ``benchmark``, a kind a folder under ``folder/robustness``; writes
    ``robustness.json`` and ``robustness.md`` beside the clean run and gives the figures."""
    spoiled = {}
    for kind in KINDS:
        source = cast(Benchmark, Corrupted(benchmark, kind))
        spoiled[kind] = ask(source, folder / "robustness" / kind)
    found = {"order": clean["order"], "severity": SEVERITY, "cells": drops(clean, spoiled)}
    write_json(folder / "robustness.json", found)
    write_text(folder / "robustness.md", markdown(found))
    return found


def drops(clean: Summary, spoiled: Mapping[str, Summary]) -> dict[str, Any]:
    """By cell, by kind: ``accuracy`` there, ``drop`` from the cell's own clean accuracy, and ``excess``: that drop less
    the unpatched model's. Cells that cannot be run are left out."""
    out: dict[str, Any] = {}
    for name in clean["order"]:
        if "closed" in clean["cells"][name]:
            continue
        out[name] = {}
        for kind, summary in spoiled.items():
            now, base = summary["cells"].get(name, {}), fell(clean, summary, UNPATCHED)
            drop = fell(clean, summary, name)
            excess = None if drop is None or base is None else drop - base
            out[name][kind] = {"accuracy": now.get("accuracy"), "drop": drop, "excess": excess}
    return out


def fell(clean: Summary, spoiled: Summary, name: str) -> float | None:
    """By how much a cell's accuracy fell; None where one of the two is missing."""
    before, after = (run["cells"].get(name, {}).get("accuracy") for run in (clean, spoiled))
    return None if before is None or after is None else before - after


def markdown(found: Summary) -> str:
    """A row a cell: of each corruption the drop, and in brackets what is beyond the unpatched model's."""
    rows = []
    for name, kinds in found["cells"].items():
        extra = [number(k["excess"], lambda v: f"{100 * v:+.1f}") for k in kinds.values()]
        words = [f"{percent(k['drop'])} ({more})" for k, more in zip(kinds.values(), extra, strict=True)]
        rows.append([*split(name), *words])
    strength = ", ".join(f"{kind} {value}" for kind, value in found["severity"].items())
    note = (
        "Points of accuracy lost under each corruption, and in brackets how many more than the unpatched model loses. "
        f"Severities: {strength} (docs/evaluation.md says of what)."
    )
    return "\n\n".join([grid(["method", "budget", *KINDS], rows), note]) + "\n"
