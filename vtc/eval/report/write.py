"""What a run leaves behind: ``summary.json``, tables, plots and overlays, each whole or absent."""

from __future__ import annotations

import re
import warnings
from collections.abc import Container, Iterator
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from vtc.eval.asking.generate import Answerer, Asked
from vtc.eval.asking.limits import of_the_sample, told
from vtc.eval.asking.usable import usable
from vtc.eval.benchmarks import Benchmark
from vtc.eval.cells import Cell
from vtc.eval.report import cost_table, export, html, overlays, plots, reliability, tables
from vtc.files.atomic import write_atomic, write_json, write_text


def write(
    results: Any, answerer: Answerer, benchmark: Benchmark, cells: list[Cell], pictures: int, failed: Container[int]
) -> None:
    """Everything but ``results.jsonl``. Without matplotlib the plot is left out. ``failed``: rows not drawn."""
    folder: Path = results.folder
    write_json(folder / "summary.json", results.summary)
    page = tables.markdown(results.summary, results.measured, cost_table.markdown(results.measured))
    write_text(folder / "table.md", page)
    write_text(folder / "table.csv", export.comma_separated(results.summary, results.measured))
    write_text(folder / "table.tex", export.latex(results.summary))
    if plots.available():
        draw(results, folder)
    show(folder, answerer, benchmark, one_each(cells), pictures, failed)
    write_report(results, benchmark.name)


def write_report(results: Any, name: str) -> None:
    """``report.html`` of all that lies in the run folder."""
    run = html.Run(name, results.folder, results.summary, results.measured)
    write_text(results.folder / "report.html", html.page(title(results.summary), [run]))


def title(summary: dict[str, Any]) -> str:
    settings = summary["settings"]
    return f"{settings['model'] or settings['model_class']}: vision tokens and accuracy"


def show(
    folder: Path, answerer: Answerer, benchmark: Benchmark, columns: list[Cell], pictures: int, failed: Container[int]
) -> None:
    """What was kept of some pictures, a column a method. One that cannot be drawn is left out, with a warning."""
    for asked in distinct(usable(answerer, benchmark, failed), pictures if columns else 0):
        try:
            image = overlays.draw(answerer, asked, columns, benchmark.score)
        except Exception as error:  # as in asking: one picture does not end a run
            if not of_the_sample(error):
                raise
            warnings.warn(f"{asked.sample.where}: no overlay ({told(error)})", stacklevel=2)
            continue
        write_atomic(folder / "overlays" / f"{file_name(asked.sample.id)}.png", image.save)


def file_name(text: str) -> str:
    """A short name that every system takes, another for another ``text``."""
    plain = re.sub("[^A-Za-z0-9_-]", "_", text)[:60]
    return (
        plain
        if plain == text
        else f"{plain}-{blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=4).hexdigest()}"
    )


def draw(results: Any, folder: Path) -> None:
    """A plot for each kind of cost that is known, and a reliability diagram."""
    for axis in plots.AXES:
        if plots.curves(results.summary, results.measured, axis):
            one = partial(plots.pareto, results.summary, results.measured, axis=axis)
            write_atomic(folder / axis.file, one)
    if reliability.calibrated(results.summary):
        write_atomic(folder / "reliability.png", partial(reliability.draw, results.summary))


def distinct(asked: Iterator[Asked], count: int) -> Iterator[Asked]:
    """The first ``count`` with a picture not seen before, of different types where there are."""
    seen: set[bytes] = set()
    types: set[str] = set()
    for n, each in enumerate(asked):
        if len(seen) >= count or n >= 50 * count:
            return
        if len(each.pictures) != 1 or (each.sample.type in types and n < 10 * count):
            continue
        key = each.pictures[0].tobytes()[:65536]
        if key not in seen:
            seen.add(key)
            types.add(each.sample.type)
            yield each


def one_each(cells: list[Cell]) -> list[Cell]:
    """For every method the cell to draw: the second least of four budgets (few enough tokens to see a choice), or the
    next one that the method reaches."""
    budgets = sorted({tables.order_key(cell.budget) for cell in cells if cell.patched})
    chosen: dict[str, Cell] = {}
    for cell in sorted((c for c in cells if c.patched), key=lambda c: tables.order_key(c.budget)):
        if tables.order_key(cell.budget) >= budgets[len(budgets) // 3]:
            chosen.setdefault(cell.spec, cell)
    return [chosen[spec] for spec in dict.fromkeys(c.spec for c in cells) if spec in chosen]
