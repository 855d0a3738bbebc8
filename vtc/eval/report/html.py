"""``report.html``: tables, plots and pictures of a run, or of several, in one file; nothing is fetched to show it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtc.eval.report import cost_table, plots, robustness, tables
from vtc.files.escape import html as escape
from vtc.files.strict import read_json

STYLE = """
:root { color-scheme: light; --ink: #1c1c1c; --soft: #666; --line: #ddd; --best: #e3f1e3 }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); max-width: 84rem; margin: 2rem auto; padding: 0 1.2rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line) }
h3 { font-size: 1rem; margin-bottom: .4rem }
nav a { margin-right: 1rem }
p.note, figcaption, dt { color: var(--soft); font-size: .88rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { padding: .22rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #f0f0f0 }
th { border-bottom: 1px solid var(--ink); cursor: pointer; position: sticky; top: 0; background: #fff }
th:first-child, td:first-child { text-align: left }
tr.first td { border-top: 1px solid var(--line) }
td.best { background: var(--best) }
td.bad { color: #a33 }
td.unclear { color: var(--soft); font-style: italic }
figure { margin: 1rem 0 } img { max-width: 100%; height: auto }
dl { display: grid; grid-template-columns: max-content auto; gap: 0 1rem; font-size: .88rem } dd { margin: 0 }
pre { background: #f6f6f6; padding: .7rem; overflow-x: auto; font-size: .85rem }
"""

SORT = """
for (const head of document.querySelectorAll('th')) head.onclick = () => {
  const body = head.closest('table').tBodies[0], at = head.cellIndex, rows = [...body.rows];
  const value = row => { const found = row.cells[at].dataset.value ?? row.cells[at].textContent;
    const number = parseFloat(found); return isNaN(number) ? found : number };
  head.up = !head.up;
  rows.sort((a, b) => { const [x, y] = [value(a), value(b)];
    if (typeof x !== typeof y) return typeof x === 'number' ? -1 : 1;
    return (x < y ? -1 : x > y ? 1 : 0) * (head.up ? 1 : -1) });
  body.replaceChildren(...rows);
};
"""


@dataclass(frozen=True)
class Run:
    """One run folder's figures."""

    name: str
    folder: Path
    summary: dict[str, Any]
    measured: dict[str, Any]


def page(title: str, runs: Sequence[Run], command: str = "", overview: Sequence[str] = ()) -> str:
    """The whole page. ``command``: what makes these figures again; ``overview``: parts that stand above the runs."""
    links = "".join(f'<a href="#{anchor(run.name)}">{escape(run.name)}</a>' for run in runs)
    parts = [f"<h1>{escape(title)}</h1>", f"<nav>{links}</nav>" if len(runs) > 1 else ""]
    parts += overview
    for run in runs:
        parts += section(run)
    if command:
        parts.append(f"<h2>Make it again</h2><pre>{escape(command)}</pre>")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + f"\n<script>{SORT}</script></body></html>\n"
    )


def anchor(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def section(run: Run) -> list[str]:
    """One benchmark: accuracy by method and budget, plots, every figure, types, overlays, settings."""
    parts = [f'<h2 id="{anchor(run.name)}">{escape(run.name)}</h2>']
    parts += ["<h3>Accuracy (%) by budget</h3>", by_budget(run.summary)]
    for axis in plots.AXES:
        parts.append(figure(run.folder / axis.file, f"Accuracy over {axis.label}."))
    parts += titled("Every figure", tables.HEAD, tables.main_rows(run.summary, run.measured))
    parts += titled("What the benchmark reports", *tables.metric_rows(run.summary))
    parts += titled("Accuracy (%) by question type", *tables.type_rows(run.summary))
    parts += beyond(run)
    parts += titled("Time, memory and energy", cost_table.HEAD, cost_table.rows(run.measured))
    parts += brittle(run.folder / "robustness.json")
    parts += [f'<p class="note">{escape(text)}</p>' for text in tables.notes(run.summary, run.measured)]
    pictures = sorted((run.folder / "overlays").glob("*.png"))
    parts += ["<h3>What was kept</h3>"] if pictures else []
    parts += [figure(path, path.stem) for path in pictures]
    return [*parts, settings(run.summary["settings"])]


def titled(title: str, head: Sequence[str], rows: list[list[str]]) -> list[str]:
    """A table under its title; nothing without rows."""
    return [f"<h3>{title}</h3>", table(head, rows)] if rows else []


def beyond(run: Run) -> list[str]:
    """What an accuracy hides: agreement, calibration, the worst type and the gap between types."""
    parts = titled("Beyond accuracy: agreement, calibration, gaps", tables.BEYOND, tables.beyond_rows(run.summary))
    caption = "Accuracy over confidence, a panel a method; on the dotted line a probability means what it says."
    return [*parts, figure(run.folder / "reliability.png", caption)]


def brittle(file: Path) -> list[str]:
    """What each corruption costs, where the run was asked under them."""
    if not file.exists():
        return []
    found = read_json(file)
    parts = titled("Robustness", *robustness.table(found))
    return [*parts, f'<p class="note">{escape(robustness.note(found))}</p>']


def by_budget(summary: dict[str, Any]) -> str:
    """Methods by budgets; the best of each column stands out."""
    names = [name for name in summary["order"] if "@" in name]
    columns = list(dict.fromkeys(tables.split(name)[1] for name in names))
    cells = {tables.split(name): summary["cells"][name] for name in summary["order"]}
    known = {place: cell["accuracy"] for place, cell in cells.items() if cell.get("questions")}
    best = {column: max((known.get((m, column), -1) for m, _ in cells), default=-1) for column in columns}
    body = []
    for method in dict.fromkeys(tables.split(name)[0] for name in names):
        row = [f"<td>{escape(method)}</td>"]
        for column in columns:
            cell = cells.get((method, column), {})
            accuracy = known.get((method, column))
            text = f"least {cell['least']}" if cell.get("least") else "–"
            if accuracy is not None:
                text = tables.percent(accuracy, cell["stderr"])
            row.append(f"<td{' class=best' if accuracy == best[column] else ''}>{escape(text)}</td>")
        body.append("<tr>" + "".join(row) + "</tr>")
    whole = cells[tables.split(summary["order"][0])]
    full = tables.percent(whole["accuracy"], whole["stderr"]) if whole.get("questions") else "–"
    note = f'<p class="note">Unpatched: {full} at {tables.number(whole.get("tokens"), "{:.0f}".format)} tokens.</p>'
    return note + wrap("".join(f"<th>{escape(c)}</th>" for c in ["method", *columns]), "".join(body))


def table(head: Sequence[str], rows: list[list[str]]) -> str:
    """Rows of texts; a line above each new method; what is slower than unpatched in red, what is unclear in grey."""
    body, before = [], ""
    for row in rows:
        cells = "".join(f"<td{look(cell)}>{escape(cell)}</td>" for cell in row)
        body.append(f"<tr{' class=first' if row[0] != before else ''}>{cells}</tr>")
        before = row[0]
    return wrap("".join(f"<th>{escape(cell)}</th>" for cell in head), "".join(body))


def look(cell: str) -> str:
    return " class=bad" if "(slower)" in cell else " class=unclear" if "(unclear)" in cell else ""


def wrap(head: str, body: str) -> str:
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def figure(path: Path, caption: str) -> str:
    """A picture inside the page; nothing where the file is not there."""
    if not path.exists():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def settings(config: dict[str, Any]) -> str:
    """What the figures depend on."""
    plain = {k: v for k, v in config.items() if k != "cells"}
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(words(value))}</dd>" for key, value in plain.items())
    return f"<details><summary>Settings</summary><dl>{rows}</dl></details>"


def words(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
