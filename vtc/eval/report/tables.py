"""A run as tables in Markdown. Numbers with their error, slow things called slow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from vtc.files import escape

HEAD = (
    *("method", "budget", "accuracy %", "change [95 %]", "retention %", "tokens", "rows"),
    *("prefill ms", "speed-up", "KV cache", "GFLOPs"),
)
BEYOND = (
    *("method", "budget", "same answers %", "right to wrong %", "wrong to right %", "confidence %", "ECE %"),
    *("worst type", "its accuracy %", "its drop", "gap"),
)


class Strong(str):
    """A text that Markdown shows in bold."""


def order_key(budget: int | float | None) -> tuple[int, int | float]:
    """Sorts budgets: shares ascending, then token counts ascending."""
    return (isinstance(budget, int), budget or 0)


def split(name: str) -> tuple[str, str]:
    """A cell's name as (method, budget in words)."""
    method, at, budget = name.rpartition("@")
    if not at:
        return name, "all"
    return method, budget if "." not in budget and "e" not in budget else f"{100 * float(budget):g} %"


def number(value: float | None, form: Callable[[float], str]) -> str:
    return "-" if value is None or math.isnan(value) else form(value)


def percent(value: float | None, error: float | None = None) -> str:
    text = number(value, lambda v: f"{100 * v:.1f}")
    return text + (f" ± {100 * error:.1f}" if text != "-" and error is not None and not math.isnan(error) else "")


def interval(change: Sequence[float] | None) -> str:
    """``-0.4 [-1.1, +0.2]`` in percentage points."""
    if change is None or any(math.isnan(value) for value in change):
        return "-"
    middle, low, high = (f"{100 * value:+.1f}" for value in change)
    return f"{middle} [{low}, {high}]"


def bytes_text(value: float) -> str:
    """Bytes in powers of 1,000."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def speed(timing: dict[str, Any], key: str = "speedup") -> str:
    """The speed-up ± half its inter-quartile range over the turns, and plainly that there is none, or none to tell."""
    factor, spread = timing[key], timing.get(f"{key}_iqr")  # runs of before have no spread
    text = f"{factor:.2f}x"
    if timing["repeats"] < 2:
        return f"{text} (one turn)"
    if spread is not None:
        text += f" ± {spread / 2:.2f}"
        if spread >= abs(factor - 1):
            return f"{text} (unclear)"
    return text if factor >= 1 else f"{text} (slower)"


def main_rows(summary: dict[str, Any], measured: dict[str, Any]) -> list[list[str]]:
    """A row a cell: method, budget and the figures of ``HEAD``."""
    rows = []
    for name in summary["order"]:
        cell, (method, budget) = summary["cells"][name], split(name)
        if "closed" in cell:
            rows.append([method, budget, f"least {cell['least']}" if cell["least"] is not None else "n/a"] + ["-"] * 8)
            continue
        timing = measured.get(name, {}).get("timing")
        milliseconds = f"{timing['prefill_ms']:.2f} ± {timing['iqr_ms'] / 2:.2f}" if timing else "-"
        rows.append(
            [
                method,
                budget,
                percent(cell["accuracy"], cell["stderr"]),
                "-" if budget == "all" else interval(cell.get("change")),
                percent(cell["retention"]),
                number(cell["tokens"], lambda v: f"{v:.1f}"),
                number(cell.get("rows"), lambda v: f"{v:.1f}"),
                milliseconds,
                ("1" if budget == "all" else speed(timing)) if timing else "-",
                number(cell["kv_bytes"], bytes_text),
                number(cell["flops"], lambda v: f"{v / 1e9:.3g}"),
            ]
        )
    return rows


def type_rows(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Accuracy by question type: each group, then its types. No rows where there is one type only."""
    kinds = summary["groups_of_types"]
    if len(kinds) < 2:
        return [], []
    groups = sorted(set(kinds.values()), key=lambda g: (not g.startswith("one"), g))
    columns = [(group, kind) for group in groups for kind in ["", *sorted(k for k in kinds if kinds[k] == group)]]
    columns = [c for c in columns if c[0] or c[1]]
    rows = []
    for name in summary["order"]:
        cell = summary["cells"][name]
        if "closed" not in cell:
            parts = [cell["types"].get(kind) if kind else cell["groups"].get(group) for group, kind in columns]
            rows.append([*split(name), *(percent(part["accuracy"]) if part else "-" for part in parts)])
    return ["method", "budget", *(kind or Strong(group) for group, kind in columns)], rows


def figure(value: float) -> str:
    return f"{value:.4g}"


def metric_rows(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The benchmark's own figures, its headline first; names with a slash are left to ``summary.json``."""
    cells = {name: cell["metrics"] for name, cell in summary["cells"].items() if cell.get("metrics")}
    columns = list(dict.fromkeys(key for metrics in cells.values() for key in metrics if "/" not in key))
    rows = [
        [*split(name), *(number(cells[name].get(key), figure) for key in columns)]
        for name in summary["order"]
        if name in cells
    ]
    return ["method", "budget", *(Strong(key) if n == 0 else key for n, key in enumerate(columns))], rows


def beyond_rows(summary: dict[str, Any]) -> list[list[str]]:
    """What an accuracy hides: a row a cell, the figures of ``BEYOND``."""
    rows = []
    for name in summary["order"]:
        cell = summary["cells"][name]
        if not cell.get("agreement"):
            continue
        agrees, sure, worst = cell["agreement"], cell["calibration"] or {}, cell["subgroups"]["types"]
        flips = [percent(agrees[key]) for key in ("same", "right_to_wrong", "wrong_to_right")]
        told = worst["worst"] if worst and worst["gap"] else "-"  # of equals none is the worst
        kinds = [told, *(percent(worst[key]) for key in ("accuracy", "drop", "gap"))] if worst else ["-"] * 4
        rows.append([*split(name), *flips, percent(sure.get("confidence")), percent(sure.get("ece")), *kinds])
    return rows


Escape = Callable[[str], str]


def notes(
    summary: dict[str, Any], measured: dict[str, Any], text: Escape = escape.visible, code: Escape = escape.visible
) -> list[str]:
    """What a reader must know to read the numbers; ``text`` and ``code`` escape the names in them."""
    cells, settings, versions = summary["cells"], summary["settings"], summary["settings"]["versions"]
    source, part = code(settings["benchmark"]["name"]), text(settings["benchmark"]["split"])
    model, processor = code(settings["model_class"]), text(settings["processor"])
    base = cells[summary["order"][0]]
    out = [
        f"{base.get('questions', 0):,} questions a cell of {source} ({part}). Accuracy ± one standard error; "
        "change: against the unpatched model, question by question, with its 95 % bootstrap interval; "
        f"retention = (accuracy - floor) / (unpatched - floor), floor {percent(summary['floor'])} % (each type's "
        "commonest answer). Tokens: a picture's vision tokens averaged over decoder layers. "
        "KV cache and GFLOPs: one prompt, decoder prefill.",
        f"{model}, {settings['dtype']}, {settings['device']}, attention {text(settings['attention'])}, "
        f"{processor}, torch {versions['torch']}, transformers {versions['transformers']}.",
    ]
    if timings := [entry["timing"] for entry in measured.values() if "timing" in entry]:
        out.append(
            f"Prefill: median ± half the inter-quartile range over {timings[0]['repeats']} turns of a batch of "
            f"{timings[0]['batch']}, vision tower and selection inside; speed-up: median over turns against the "
            "unpatched model run moments before, ± half its inter-quartile range. (unclear): it differs from 1 by no "
            "more than its whole inter-quartile range, so these turns do not tell faster from slower."
        )
    if reasons := {entry["not_measured"] for entry in measured.values() if "not_measured" in entry}:
        what = "" if any("cost" in entry for entry in measured.values()) else "Costs, "
        out.append(f"{what}times, memory and energy could not be measured: {'; '.join(sorted(reasons))}")
    if errors := sum(cell.get("errors", 0) for cell in cells.values()):
        told = f"{errors} answers are missing because of errors (see results.jsonl); they are not scored."
        out.append(Strong(told))
    for name, cell in cells.items():
        if "closed" in cell:
            out.append(f"{text(name)}: {text(cell['closed'])}")
    return out


def markdown(summary: dict[str, Any], measured: dict[str, Any], more: Sequence[str] = ()) -> str:
    """Everything as one Markdown page, ``more`` before the notes."""
    parts = [grid(HEAD, main_rows(summary, measured))]
    head, rows = metric_rows(summary)
    if rows:
        own = f"Figures of {escape.code(summary['settings']['benchmark']['name'])}, as fractions of 1 or as points:"
        parts += [own, grid(head, rows)]
    head, rows = type_rows(summary)
    if rows:
        parts += ["Accuracy (%) by question type:", grid(head, rows)]
    if rows := beyond_rows(summary):
        parts += ["Beyond accuracy (docs/evaluation.md says what each column is):", grid(BEYOND, rows)]
    told = [
        f"**{note}**" if isinstance(note, Strong) else note
        for note in notes(summary, measured, escape.markdown, escape.code)
    ]
    return "\n\n".join([*parts, *more, *told]) + "\n"


def grid(head: Sequence[str], rows: list[list[str]]) -> str:
    """A table in Markdown; every cell is escaped here."""
    align = ["---", *["---:"] * (len(head) - 1)]
    lines = [[*map(in_cell, head)], align, *([*map(in_cell, row)] for row in rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def in_cell(text: str) -> str:
    return f"**{escape.markdown(text)}**" if isinstance(text, Strong) else escape.markdown(text)
