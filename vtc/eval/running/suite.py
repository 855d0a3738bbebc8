"""Several benchmarks with one model: a run folder each, and one table over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from html import escape
from pathlib import Path
from statistics import mean
from typing import Any

from vtc.errors import DataError
from vtc.eval.benchmarks import Benchmark, registry
from vtc.eval.distributed import ALONE, World
from vtc.eval.report import html, tables
from vtc.eval.report.robustness import measure
from vtc.eval.report.write import title, write_report
from vtc.eval.results.journal import start_over
from vtc.eval.running.run import Results, evaluate
from vtc.files.atomic import write_text


def parse(names: str, data_dir: Path | None, split: str = "", prefer: str = "", **options: Any) -> list[Benchmark]:
    """``gqa,pope``: the benchmarks. Of several, each has its files in its own folder inside ``data_dir``. Without a
    ``split``, the one to ``prefer`` where a benchmark has it, else its usual one."""
    chosen = list(dict.fromkeys(name.strip() for name in names.split(",") if name.strip()))
    if not chosen:
        raise DataError(f"benchmarks {names!r} names none; there are: {', '.join(registry)}")
    kinds = {name: registry[name] for name in chosen}
    return [
        kind(
            data_dir=data_dir / name if data_dir and len(kinds) > 1 else data_dir,
            split=split or (prefer if prefer in kind.splits else ""),
            **options,
        )
        for name, kind in kinds.items()
    ]


def evaluate_all(
    model: Any,
    processor: Any,
    benchmarks: Sequence[Benchmark],
    methods: Sequence[str],
    budgets: Sequence[int | float],
    output: Path,
    world: World = ALONE,
    robustness: bool = False,
    **options: Any,
) -> list[Results]:
    """``evaluate`` on each benchmark: one writes into ``output``, several into ``output/<name>``, with ``table.md``
    and ``report.html`` over all of them on top. Finished benchmarks are not asked again when an interrupted suite goes
    on. With ``robustness`` each benchmark is asked again under every corruption (nothing is timed there)."""
    options["world"] = world
    several = len(benchmarks) > 1
    if several and options.get("overwrite") and world.first and output.exists():
        start_over(output)
    runs = []
    for benchmark in benchmarks:
        folder = output / benchmark.name if several else output
        runs.append(evaluate(model, processor, benchmark, methods, budgets, folder, **options))
        if robustness:
            untimed = options | {"repeats": 0, "overlays": 0}
            ask = partial(evaluate, model, processor, methods=methods, budgets=budgets, **untimed)
            measure(folder, benchmark, ask, world)
            if world.first:
                write_report(runs[-1], benchmark.name)
    if world.first and several:
        summaries = {b.name: run.summary for b, run in zip(benchmarks, runs, strict=True)}
        write_text(output / "table.md", markdown(summaries))
        pages = [html.Run(b.name, r.folder, r.summary, r.measured) for b, r in zip(benchmarks, runs, strict=True)]
        top = title(runs[0].summary)
        write_text(output / "report.html", html.page(top, pages, overview=overview(summaries)))
    return runs


def markdown(summaries: dict[str, dict[str, Any]]) -> str:
    """A row a cell, a column a benchmark (accuracy), and the mean retention over the benchmarks."""
    head, own = headlines(summaries)
    parts = [tables.grid(*main_table(summaries))]
    parts += ["What each benchmark reports:", tables.grid(head, own)] if own else []
    return "\n\n".join([*parts, note(summaries)]) + "\n"


def overview(summaries: dict[str, dict[str, Any]]) -> list[str]:
    """The same for ``report.html``."""
    parts = html.titled("All benchmarks: accuracy (%)", *main_table(summaries))
    parts += html.titled("What each benchmark reports", *headlines(summaries))
    return [*parts, f'<p class="note">{escape(note(summaries))}</p>']


def main_table(summaries: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    order = next(iter(summaries.values()))["order"]
    rows = [[*tables.split(name), *figures([s["cells"][name] for s in summaries.values()])] for name in order]
    return ["method", "budget", *summaries, "mean retention %"], rows


def note(summaries: dict[str, dict[str, Any]]) -> str:
    counts = ", ".join(f"{name} {s['cells'][s['order'][0]].get('questions', 0):,}" for name, s in summaries.items())
    return (
        f"Accuracy (%) ± one standard error. Questions: {counts}. Mean retention: the plain mean over the "
        "benchmarks of each folder's `retention`; - where a benchmark has none."
    )


def headlines(summaries: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Of the benchmarks that have figures of their own the first figure: a row a cell. No rows where none has."""
    own = {name: head[2] for name, s in summaries.items() if len(head := tables.metric_rows(s)[0]) > 2}
    rows = []
    for cell in next(iter(summaries.values()))["order"] if own else []:
        found = [summaries[name]["cells"][cell].get("metrics", {}).get(key) for name, key in own.items()]
        rows.append([*tables.split(cell), *(tables.number(value, tables.figure) for value in found)])
    return ["method", "budget", *(f"{name} {key}" for name, key in own.items())], rows


def figures(cells: Sequence[dict[str, Any]]) -> list[str]:
    """One cell's accuracy on each benchmark, then its mean retention (``-`` unless every benchmark has one)."""
    shown: list[str] = []
    kept: list[float | None] = []
    for cell in cells:
        if "closed" in cell:
            shown.append(f"least {cell['least']}" if cell["least"] is not None else "n/a")
            kept.append(None)
        else:
            shown.append(tables.percent(cell["accuracy"], cell["stderr"]))
            kept.append(cell["retention"])
    whole = [value for value in kept if value is not None and value == value]
    return [*shown, tables.percent(mean(whole) if len(whole) == len(kept) else None)]
