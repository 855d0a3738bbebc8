"""One run: every question asked of every cell, each answer on disk at once; then costs, tables and figures."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import vtc
from vtc.errors import BudgetError, DataError, UnsupportedModel, VTCError
from vtc.eval import journal as journals
from vtc.eval import measure, outputs
from vtc.eval.benchmarks import Benchmark, Sample
from vtc.eval.beyond import beyond
from vtc.eval.cells import Cell, plan
from vtc.eval.describe import describe
from vtc.eval.files import write_json
from vtc.eval.generate import Answerer, Asked
from vtc.eval.journal import Journal
from vtc.eval.summary import summarise


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
    allow_errors: bool = False,
    overwrite: bool = False,
    timing_batch: int = 1,
    repeats: int = 9,
    overlays: int = 4,
    progress: bool = True,
    name: str = "",
) -> Results:
    """Ask ``benchmark`` of the unpatched model and of every method at every budget; write tables into ``output``.

    A run that was interrupted goes on where it stopped when called again with the same settings. ``max_new_tokens``:
    the longest answer (None: the benchmark's own); ``timing_batch``: questions in a timed batch; ``repeats``: timed
    turns (0 = no timing); ``overlays``: pictures drawn. Raises ``DataError`` at a bad sample unless ``allow_errors``,
    ``RunRefused`` for a folder of another run.
    """
    if batch_size < 1:
        raise DataError(f"batch size {batch_size} is below 1; the least is 1")
    if vtc.patch_of(model) is not None:
        raise VTCError("the model is patched, so there is no unpatched model to compare with; vtc.unpatch(model) first")
    cells = plan(methods, budgets)
    longest = benchmark.max_new_tokens if max_new_tokens is None else max_new_tokens
    answerer = Answerer(model.eval(), processor, benchmark.frame, template, longest)
    config = describe(answerer, benchmark, cells, name, batch_size)
    with Journal(Path(output), config, overwrite) as journal:
        quiet = None if progress else True  # None: quiet unless a person watches
        with tqdm(total=(benchmark.count() or 0) * len(cells) or None, unit="q", disable=quiet) as bar:
            runner = Runner(answerer, benchmark, cells, journal, allow_errors, bar)
            for samples in chunks(benchmark.samples(), batch_size):
                runner.batch(samples)
        journal.sync()
        open_cells = [cell for cell in cells if cell.name not in journal.closed]
        measured = measurements(
            answerer, benchmark, open_cells, journal.folder / "measured.json", repeats, timing_batch
        )
        costs = {name: entry["cost"] for name, entry in measured.items()}
        summary = summarise(journals.read(journal.path), [c.name for c in cells], costs) | {"settings": config}
        for each, figures in beyond(summary, journals.read(journal.path)).items():
            summary["cells"][each] |= figures
        results = Results(journal.folder, json.loads(json.dumps(summary)), measured)
        outputs.write(results, answerer, benchmark, open_cells, overlays)
    return results


@dataclass
class Runner:
    """Asks one batch after the other of every cell that has not answered it."""

    answerer: Answerer
    benchmark: Benchmark
    cells: list[Cell]
    journal: Journal
    allow_errors: bool
    bar: tqdm

    def batch(self, samples: list[Sample]) -> None:
        """Pictures are decoded once for all cells. A batch is asked whole even when part of it is answered, so that an
        interrupted run computes the same numbers as one that was not."""
        todo = [cell for cell in self.cells if self.missing(cell, samples)]
        self.bar.update(len(samples) * (len(self.cells) - len(todo)))
        if not todo:
            return
        asked, bad = self.load(samples)
        inputs = self.inputs(asked)
        for cell in todo:
            self.bar.set_postfix_str(cell.name)
            try:
                lines = self.ask(cell, asked, inputs)
            except (BudgetError, UnsupportedModel) as error:
                closed = {"cell": cell.name, "closed": str(error), "least": getattr(error, "least", None)}
                self.journal.append([closed])
            else:
                self.journal.append([error_line(cell, sample, reason) for sample, reason in bad] + lines)
            self.bar.update(len(samples))

    def missing(self, cell: Cell, samples: list[Sample]) -> bool:
        done = self.journal.done[cell.name]
        return cell.name not in self.journal.closed and any(sample.id not in done for sample in samples)

    def load(self, samples: list[Sample]) -> tuple[list[Asked], list[tuple[Sample, str]]]:
        """The samples that can be asked, and those that cannot with the reason."""
        asked, bad = [], []
        for sample in samples:
            try:
                asked.append(self.answerer.ready(sample, self.benchmark))
            except DataError as error:
                bad.append((sample, self.tolerate(str(error), error)))
        return asked, bad

    def inputs(self, asked: list[Asked]) -> Any:
        """The whole batch for the model, or None where it must be made in smaller parts to find what is wrong."""
        try:
            return self.answerer.inputs(asked) if asked else None
        except Exception:  # processors raise all kinds; ``ask`` finds the sample and names it
            return None

    def ask(self, cell: Cell, asked: list[Asked], inputs: Any = None) -> list[dict[str, Any]]:
        """A line a question. What fails as a batch (out of memory, one odd picture) is halved until it is one."""
        if not asked:
            return []
        try:
            inputs = self.answerer.inputs(asked) if inputs is None else inputs
            with measure.entered(self.answerer.model, cell):
                replies = self.answerer.replies(inputs)
                tokens = self.tokens(cell, asked, inputs)
            return [self.line(cell, *each) for each in zip(asked, replies, tokens, strict=True)]
        except Exception as error:
            if isinstance(error, VTCError) and not isinstance(error, DataError):
                raise
            failure = error.with_traceback(None)  # the traceback would keep the batch's memory
        del inputs
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(asked) > 1:
            half = len(asked) // 2
            return self.ask(cell, asked[:half]) + self.ask(cell, asked[half:])
        sample = asked[0].sample
        reason = f"{sample.where}: {type(failure).__name__}: {' '.join(str(failure).split())[:300]}"
        return [error_line(cell, sample, self.tolerate(reason, failure))]

    def tolerate(self, reason: str, error: Exception) -> str:
        """The reason, when bad samples may be passed over; else the run stops here."""
        if self.allow_errors:
            return reason
        raise DataError(f"{reason} (to go on past bad samples and count them: --allow-errors)") from error

    def tokens(self, cell: Cell, asked: list[Asked], inputs: Any) -> list[float]:
        """Layer-averaged vision tokens a picture, for each question."""
        if cell.patched:
            rows = [0.0] * len(asked)
            for picture in vtc.report(self.answerer.model).pictures:
                rows[picture.prompt] += picture.average
        else:
            rows = [float(n) for n in self.answerer.vision_rows(inputs)]
        return [row / max(len(a.pictures), 1) for row, a in zip(rows, asked, strict=True)]

    def line(self, cell: Cell, asked: Asked, reply: tuple[str, float], tokens: float) -> dict[str, Any]:
        sample, (answer, confidence) = asked.sample, reply
        score = self.benchmark.score(answer, sample)
        said = {"answer": answer, "expected": list(sample.answers), "score": score, "tokens": tokens}
        said["confidence"] = confidence
        return {"cell": cell.name, "id": sample.id, "type": sample.type, "group": sample.group, **said}


def error_line(cell: Cell, sample: Sample, reason: str) -> dict[str, Any]:
    return {"cell": cell.name, "id": sample.id, "type": sample.type, "group": sample.group, "error": reason}


def chunks(samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    """Batches whose borders never move."""
    while batch := list(islice(samples, size)):
        yield batch


def measurements(
    answerer: Answerer, benchmark: Benchmark, cells: list[Cell], path: Path, repeats: int, batch: int
) -> dict[str, Any]:
    """What each cell costs, by name; what ``path`` (``measured.json``) holds already is not measured again."""
    entries: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    done = [cell for cell in cells if cell.name in entries]
    if len(done) == len(cells):
        return entries
    probes = list(islice(outputs.usable(answerer, benchmark), max(measure.COST_PROBES, batch)))
    if not probes:
        return {}
    entries = measure.everything(answerer, cells, probes, repeats, batch)
    write_json(path, entries)
    return entries
