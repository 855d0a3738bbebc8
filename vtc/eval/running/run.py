"""One run: every question asked of every cell, each answer on disk at once; then costs, tables and figures."""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

import vtc
from vtc.errors import DataError, VTCError
from vtc.eval.asking.batches import batches
from vtc.eval.asking.generate import Answerer
from vtc.eval.asking.usable import usable
from vtc.eval.benchmarks import Benchmark
from vtc.eval.cells import Cell, plan
from vtc.eval.costs import measure
from vtc.eval.costs.interleaved import Turns
from vtc.eval.distributed import ALONE, World
from vtc.eval.report import write as outputs
from vtc.eval.results import json_lines as lines
from vtc.eval.results.journal import Journal
from vtc.eval.results.summary import add_metrics, summarise
from vtc.eval.running.describe import describe, machine
from vtc.eval.running.runner import Runner
from vtc.files.atomic import write_json


@dataclass(frozen=True)
class Results:
    """What a run wrote, as data: ``summary`` (the same bytes however often it was interrupted) and ``measured``."""

    folder: Path
    summary: dict[str, Any]
    measured: dict[str, Any]


def evaluate(
    model: Any,
    processor: Any,
    benchmark: Benchmark,
    methods: Sequence[str],
    budgets: Sequence[int | float],
    output: str | Path,
    *,
    batch_size: int = 16,
    template: str = "{question}",
    max_new_tokens: int | None = None,
    overwrite: bool = False,
    timing_batch: int = 1,
    repeats: int = 9,
    overlays: int = 4,
    progress: bool = True,
    name: str = "",
    world: World = ALONE,
) -> Results:
    """Ask ``benchmark`` of the unpatched model and of every method at every budget; write tables into ``output``.

    A run that was interrupted goes on where it stopped when called again with the same settings. ``max_new_tokens``:
    the longest answer (None: the benchmark's own); ``timing_batch``: questions in a timed batch; ``repeats``: timed
    turns (0 = no timing); ``overlays``: pictures drawn. Bad samples are counted, never scored; ``DataError`` where the
    first 20 all are. ``RunRefused`` for a folder of another run. Of several ranks (``world``), which share the folder
    and ask in turn, only the first has results to give.
    """
    if batch_size < 1:
        raise DataError(f"batch size {batch_size} is below 1; the least is 1")
    outer = vtc.patch_of(model)
    if outer is not None and not outer.method.learns:  # what a method learned is asked for by its cells
        raise VTCError("the model is patched, and each cell brings a patch of its own; vtc.unpatch(model) first")
    cells = plan(methods, budgets)
    longest = benchmark.max_new_tokens if max_new_tokens is None else max_new_tokens
    answerer = Answerer(model.eval(), processor, benchmark.frame, template, longest)
    config = describe(answerer, benchmark, cells, name, batch_size)
    with Journal(Path(output), config, overwrite, world) as journal:
        quiet = None if progress and world.first else True  # None: quiet unless a person watches
        total = (benchmark.count() or 0) * len(cells) // world.size
        with tqdm(total=total or None, unit="q", disable=quiet) as bar:
            runner, count = Runner(answerer, benchmark, cells, journal, bar), 0
            for batch in batches(benchmark, batch_size):
                count += len(batch.rows)
                if world.mine(batch.index):
                    runner.batch(batch)
            runner.finish()
            journal.check_count(count)
        journal.finish()
        if not world.first:
            return Results(journal.folder, {}, {})
        open_cells = [cell for cell in cells if cell.name not in journal.closed]
        settings = {"repeats": repeats, "batch": timing_batch, "machine": machine(answerer.model.device)}
        turns = Turns(journal.folder / "measured.jsonl", settings, quiet)
        failed = lines.failed_rows(journal.path)
        measured = measurements(answerer, benchmark, open_cells, repeats, timing_batch, turns, failed)
        write_json(journal.folder / "measured.json", measured)
        costs = {name: entry["cost"] for name, entry in measured.items() if "cost" in entry}
        names = [c.name for c in cells]
        journal.check_there()  # measuring may have taken hours
        summary = summarise(lines.read(journal.path), names, costs, benchmark.credits) | {"settings": config}
        add_metrics(summary, lambda cell: lines.read(journal.path, cell), benchmark.aggregate)
        results = Results(journal.folder, json.loads(json.dumps(summary)), measured)
        outputs.write(results, answerer, benchmark, open_cells, overlays, failed)
    return results


def measurements(
    answerer: Answerer,
    benchmark: Benchmark,
    cells: list[Cell],
    repeats: int,
    batch: int,
    turns: Turns,
    failed: Container[int],
) -> dict[str, Any]:
    """What each cell costs, by name, on the first questions that every cell answered; nothing where none did."""
    probes = list(islice(usable(answerer, benchmark, failed), max(measure.COST_PROBES, batch)))
    return measure.everything(answerer, cells, probes, repeats, batch, turns) if probes else {}
