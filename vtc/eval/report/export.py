"""A run's figures for a spreadsheet (CSV) and for a paper (LaTeX with booktabs)."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

from vtc.eval.cells import UNPATCHED
from vtc.eval.report.tables import order_key, split
from vtc.files.escape import latex as escape
from vtc.files.escape import spreadsheet, visible

BASELINES = ("random", "grid", "pool")
FIGURES = ("accuracy", "stderr", "retention", "tokens", "questions", "errors", "rows", "kv_bytes", "flops")
TIMES = (
    *("prefill_ms", "iqr_ms", "speedup", "speedup_iqr", "selection_ms", "ttft_ms", "ttft_speedup"),
    *("decode_tokens_per_s", "decode_speedup", "batch", "repeats"),
)


def comma_separated(summary: dict[str, Any], measured: dict[str, Any]) -> str:
    """A row a cell, raw numbers (accuracies as shares), a column for the accuracy of every question type."""
    kinds = [kind for kind in summary["groups_of_types"] if kind]
    change = ("change", "change_low", "change_high")
    columns = ["method", "budget", *FIGURES, *change, *TIMES, *(f"accuracy:{kind}" for kind in kinds), "closed"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writerow({name: spreadsheet(name) for name in columns})
    for name in summary["order"]:
        cell, timing = summary["cells"][name], measured.get(name, {}).get("timing", {})
        row: dict[str, Any] = dict(zip(("method", "budget"), split(name), strict=True))
        row |= {key: cell.get(key) for key in (*FIGURES, "closed")} | {key: timing.get(key) for key in TIMES}
        row |= dict(zip(change, cell.get("change") or (), strict=False))
        row |= {f"accuracy:{kind}": part["accuracy"] for kind, part in cell.get("types", {}).items() if kind}
        writer.writerow({key: field(value) for key, value in row.items()})
    return stream.getvalue()


def field(value: Any) -> Any:
    """A number as it is, a text harmless, nothing for what is not known."""
    return "" if unknown(value) else spreadsheet(value) if isinstance(value, str) else value


def unknown(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def latex(summary: dict[str, Any]) -> str:
    """Methods by budgets, accuracy with its standard error, the best of each column in bold (ties all); baselines
    first. Needs ``\\usepackage{booktabs}``."""
    cells = summary["cells"]
    names = [name for name in summary["order"] if name != UNPATCHED]
    columns = sorted({split(name)[1] for name in names}, key=budget_key)
    methods = list(dict.fromkeys(split(name)[0] for name in names))
    by_place = {split(name): cells[name] for name in names}
    best = {c: max((rounded(by_place.get((m, c))) for m in methods), default=-1.0) for c in columns}
    lines = [
        f"% {visible(summary['settings']['model_class'])}, {visible(summary['settings']['benchmark']['name'])}; "
        "needs booktabs",
        "\\begin{tabular}{l" + "r" * max(len(columns), 1) + "}",
        "\\toprule",
        " & ".join(["method", *map(escape, columns)]) + " \\\\",
        "\\midrule",
        f"unpatched & \\multicolumn{{{max(len(columns), 1)}}}{{c}}{{{entry(cells[UNPATCHED], -1)}}} \\\\",
    ]
    baselines = [m for m in methods if m.split("+")[0].split(":")[0] in BASELINES]
    for group in (baselines, [m for m in methods if m not in baselines]):
        lines += ["\\midrule"] if group else []
        for method in group:
            row = [entry(by_place.get((method, c)), best[c]) for c in columns]
            lines.append(" & ".join([escape(method), *row]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def budget_key(text: str) -> tuple[int, float]:
    """Shares first, the largest first, then token counts."""
    share = text.endswith("%")
    kind, value = order_key(float(text[:-1]) if share else int(text))
    return kind, -value


def rounded(cell: dict[str, Any] | None) -> float:
    """Accuracy as printed, so that what looks equal is equally best; -1 where there is none."""
    known = cell is not None and not unknown(cell.get("accuracy"))
    return round(100 * cell["accuracy"], 1) if cell is not None and known else -1.0


def entry(cell: dict[str, Any] | None, best: float) -> str:
    if cell is None or (value := rounded(cell)) < 0:
        return f"least {cell['least']}" if cell and cell.get("least") else "--"
    text = f"{value:.1f}"
    text = f"\\textbf{{{text}}}" if value == best else text
    return text if unknown(cell.get("stderr")) else f"{text} $\\pm$ {100 * cell['stderr']:.1f}"
