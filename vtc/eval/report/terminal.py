"""The main table on a terminal: as many columns as there is room for, names whole; through a pipe all of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vtc.eval.report import tables
from vtc.files.escape import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Left out for lack of room, the first one first; method, budget and accuracy stay.
DROPPED = ("rows", "KV cache", "prefill ms", "GFLOPs", "retention %", "change [95 %]", "speed-up", "tokens")
GAP = 2  # between columns
LEAST = 120  # the width of what goes through a pipe, where the table is not wider


def show(console: Console, summary: dict[str, Any], measured: dict[str, Any]) -> None:
    """The table, which columns found no room, and the notes. What is not a terminal has all the room there is."""
    rows = [[*map(visible, row)] for row in tables.main_rows(summary, measured)]
    if not console.file.isatty():  # which no setting that forces colours changes
        console.width = max(LEAST, needed(rows, range(len(tables.HEAD))))
    shown = fitting(rows, console.width)
    console.print(table(rows, shown))
    if missing := [title for n, title in enumerate(tables.HEAD) if n not in shown]:
        said = f"left out (no room): {', '.join(missing)}"  # all of them are in the files
        console.print(said, style="dim", markup=False, highlight=False)
    for note in tables.notes(summary, measured):
        console.print(note, style="dim", markup=False, highlight=False, emoji=False)


def fitting(rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """The columns of ``HEAD`` that stand side by side in ``width``, or those that are never left out."""
    shown = list(range(len(tables.HEAD)))
    for title in DROPPED:
        if needed(rows, shown) <= width:
            break
        shown.remove(tables.HEAD.index(title))
    return shown


def needed(rows: Sequence[Sequence[str]], shown: Sequence[int]) -> int:
    """How wide these columns are on lines that nothing folds."""
    from rich.cells import cell_len

    widths = [max(cell_len(row[n]) for row in [tables.HEAD, *rows]) for n in shown]
    return sum(widths) + GAP * (len(widths) - 1)


def table(rows: Sequence[Sequence[str]], shown: Sequence[int]) -> Table:
    """The columns ``shown``, a method's name once. A name that is wider than the terminal folds; nothing is cut."""
    from rich.table import Table
    from rich.text import Text

    out = Table(box=None, pad_edge=False, header_style="bold")
    for n in shown:
        out.add_column(tables.HEAD[n], justify="left" if n == 0 else "right", no_wrap=n != 0, overflow="fold")
    before = ""
    for row in rows:
        cells = [row[n] if n or row[0] != before else "" for n in shown]
        out.add_row(*(Text(cell, style(cell)) for cell in cells))
        before = row[0]
    return out


def style(cell: str) -> str:
    return "red" if "(slower)" in cell else "dim" if "(unclear)" in cell else ""
