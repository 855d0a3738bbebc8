"""Asks batches of every cell. What goes wrong with a sample becomes a line of its own, and the run goes on."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from vtc.errors import BudgetError, DataError, UnsupportedModel
from vtc.eval.asking.batches import Batch
from vtc.eval.asking.generate import Answerer, Asked
from vtc.eval.asking.limits import check_inputs, of_the_sample, told
from vtc.eval.benchmarks import Benchmark, Sample
from vtc.eval.cells import Cell
from vtc.eval.costs import measure
from vtc.eval.results.journal import Journal

LABEL = 1000  # characters of an error line's texts: one may be too long to be asked
HOPELESS = 20  # samples that fail before any answer: the data folder is wrong, or the model cannot be asked this way


@dataclass
class Runner:
    """Asks one batch after the other of every cell that has not answered it."""

    answerer: Answerer
    benchmark: Benchmark
    cells: list[Cell]
    journal: Journal
    bar: tqdm
    held: list[dict[str, Any]] = field(default_factory=list)

    def batch(self, batch: Batch) -> None:
        """Pictures are decoded once for all cells. A batch is asked whole even when part of it is answered, so that an
        interrupted run computes the same numbers as one that was not."""
        for row, sample in zip(batch.rows, batch.samples, strict=True):
            if not sample.error:
                self.journal.check_id(row, sample.id)
        todo = [cell for cell in self.cells if self.journal.missing(cell.name, batch.index, batch.rows)]
        self.bar.update(len(batch.rows) * (len(self.cells) - len(todo)))
        if not todo:
            return
        asked, bad = self.load(batch)
        ready = list(asked.values())
        inputs = self.whole(ready)
        for cell in todo:
            self.bar.set_postfix_str(cell.name)
            try:
                lines = self.ask(cell, ready, inputs)
            except (BudgetError, UnsupportedModel) as error:
                lines = [{"closed": str(error), "least": getattr(error, "least", None)}]
            else:
                by_row = dict(zip(asked, lines, strict=True)) | bad  # ids may be doubled in a file that is broken
                lines = [{"row": row} | by_row[row] for row in sorted(by_row)]
            self.record([{"cell": cell.name, "batch": batch.index} | line for line in lines])
            self.bar.update(len(batch.rows))

    def record(self, lines: list[dict[str, Any]]) -> None:
        """Errors before the first answer are held back, so that a run that can answer nothing leaves nothing behind."""
        self.held += lines
        if not self.journal.empty or not all("error" in line for line in lines):
            return self.finish()
        reasons = {line["row"]: line["error"] for line in self.held}
        if len(reasons) >= HOPELESS:
            first = next(iter(reasons.values()))
            raise DataError(f"the first {len(reasons)} samples all failed, so the run stops; the first: {first}")

    def finish(self) -> None:
        """Write what is held."""
        self.journal.append(self.held)
        self.held = []

    def load(self, batch: Batch) -> tuple[dict[int, Asked], dict[int, dict[str, Any]]]:
        """By row: the samples that can be asked, and the lines of those that cannot."""
        asked, bad = {}, {}
        for row, sample in zip(batch.rows, batch.samples, strict=True):
            try:
                asked[row] = self.answerer.ready(sample, self.benchmark)
            except Exception as error:  # benchmarks, disks and chat templates raise all kinds
                if not of_the_sample(error):
                    raise
                bad[row] = error_line(sample, reason(sample, error))
        return asked, bad

    def inputs(self, asked: list[Asked]) -> Any:
        """What the model gets, with room for the answers."""
        inputs = self.answerer.inputs(asked)
        check_inputs(inputs, self.answerer.max_new_tokens, self.answerer.model.config)
        return inputs

    def whole(self, asked: list[Asked]) -> Any:
        """The whole batch for the model, or None where it must be made in smaller parts to find what is wrong."""
        try:
            return self.inputs(asked) if asked else None
        except Exception:  # processors raise all kinds; ``ask`` finds the sample and names it
            return None

    def ask(self, cell: Cell, asked: list[Asked], inputs: Any = None) -> list[dict[str, Any]]:
        """A line a question, in order. What fails as a batch (out of memory, one odd picture) is halved until it is
        one."""
        if not asked:
            return []
        try:
            inputs = self.inputs(asked) if inputs is None else inputs
            with measure.entered(self.answerer.model, cell):
                replies = self.answerer.replies(inputs)
                tokens = self.tokens(asked, inputs)
            return [self.line(*each) for each in zip(asked, replies, tokens, strict=True)]
        except Exception as error:
            if not of_the_sample(error):
                raise
            failure = error.with_traceback(None)  # the traceback would keep the batch's memory
        del inputs
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(asked) > 1:
            half = len(asked) // 2
            lines = self.ask(cell, asked[:half]) + self.ask(cell, asked[half:])
            if not any("error" in line for line in lines):  # else the line says it
                warnings.warn(
                    f"{cell.name}: a batch of {len(asked)} failed ({told(failure)}) and was answered in two parts; a "
                    "smaller batch size is faster where memory was short, anything else is a fault to report",
                    stacklevel=2,
                )
            return lines
        return [error_line(asked[0].sample, reason(asked[0].sample, failure))]

    def tokens(self, asked: list[Asked], inputs: Any) -> list[float]:
        """Layer-averaged vision tokens a picture, for each question."""
        return [n / max(len(a.pictures), 1) for n, a in zip(self.answerer.spent(asked, inputs), asked, strict=True)]

    def line(self, asked: Asked, reply: tuple[str, float], tokens: float) -> dict[str, Any]:
        sample, (answer, confidence) = asked.sample, reply
        score = float(self.benchmark.score(answer, sample))
        if not 0 <= score <= 1:
            raise DataError(f"{self.benchmark.name} scores it {score}; a score is in [0, 1]")
        said = {"answer": answer, "expected": list(sample.answers), "score": score, "tokens": tokens}
        said["confidence"] = confidence
        return {"id": sample.id, "type": sample.type, "group": sample.group, **said}


def reason(sample: Sample, error: Exception) -> str:
    """Where the sample stands and what is wrong with it."""
    if isinstance(error, DataError):
        text = str(error)
        return text if text.startswith(sample.where) else f"{sample.where}: {text}"
    return f"{sample.where}: {told(error)}"


def error_line(sample: Sample, reason: str) -> dict[str, Any]:
    told = {"id": sample.id, "type": sample.type, "group": sample.group, "error": reason}
    return {key: text[:LABEL] for key, text in told.items()}
