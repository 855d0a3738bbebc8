"""The table on terminals of several widths and through a pipe: names are whole, and what is left out is said."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.eval.report.test_tables import MEASURED, line
from tests.eval.report.test_tables import SETTINGS as RUN
from vtc.eval.report import terminal
from vtc.eval.report.tables import HEAD
from vtc.eval.results.summary import summarise

SPECS = ("grid", "random:layer=0.0625", "visionzip+share")
LONG = "divprune+share:spend=[0.5,0.25,0.125]/fastv:layer=2:rest=[a,b,c]/pyramiddrop"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def results():
    return figures(SPECS)


def figures(specs):
    names = ["unpatched", *(f"{spec}@{budget}" for spec in specs for budget in (0.25, 0.5))]
    lines = [line(name, n, float(n % 5 != 0)) for name in names for n in range(20)]
    costs = dict.fromkeys(names, {"kv_bytes": 1.67e6, "flops": 6.2e8})
    measured = dict.fromkeys(names, MEASURED["grid@0.25"])
    return summarise(lines, names, costs) | {"settings": RUN}, measured


def printed(results, width, file=None):
    file = file or Terminal()
    terminal.show(Console(file=file, width=width, color_system=None), *results)
    return file.getvalue()


def table_of(text):
    return text.partition("left out")[0].partition("20 questions a cell")[0].splitlines()


@pytest.mark.parametrize(
    ("width", "missing"),
    [
        (60, "change [95 %], retention %, rows, prefill ms, speed-up, KV cache, GFLOPs"),
        (80, "change [95 %], retention %, rows, prefill ms, KV cache, GFLOPs"),
        (100, "retention %, rows, prefill ms, KV cache, GFLOPs"),
        (200, ""),
    ],
)
def test_names_are_whole_and_what_has_no_room_is_named(results, width, missing):
    text = printed(results, width)
    rows = table_of(text)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    assert [row.split()[0] for row in rows if row[0] != " "] == ["method", "unpatched", *SPECS]
    assert len(rows) == 8, "a line a cell"
    assert [title for title in HEAD if title not in rows[0]] == [t for t in missing.split(", ") if t]
    said = f"left out (no room): {missing}"
    assert said in " ".join(text.split()) if missing else "left out" not in text
    assert not missing or len(said) > width or said in [row.rstrip() for row in text.splitlines()], "on one line"


@pytest.mark.parametrize("width", [40, 80])
def test_through_a_pipe_nothing_is_left_out(results, width, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(width))
    for specs in (results, figures([*SPECS, LONG])):
        text = printed(specs, width, io.StringIO())
        assert all(title in table_of(text)[0] for title in HEAD) and "left out" not in text and "…" not in text
        assert len(table_of(text)) == len(specs[0]["order"]) + 1, "nothing folds"
    assert LONG in text


def test_a_name_wider_than_the_terminal_folds_and_is_not_cut():
    text = printed(figures([LONG]), 60)
    rows = table_of(text)
    assert max(map(len, rows)) <= 60 and "…" not in text
    column = rows[0].index("budget")
    assert LONG in "".join(row[:column].strip() for row in rows)
    assert LONG in printed(figures([LONG]), 200).splitlines()[2], "where it fits it stands on one line"


def test_the_least_columns_stay_however_narrow(results):
    text = printed(results, 20)
    assert "…" not in text and terminal.fitting([["m" * 30] * len(HEAD)], 20) == [0, 1, 2]


def test_slower_and_unclear_look_different():
    assert (terminal.style("0.80x ± 0.05 (slower)"), terminal.style("1.10x ± 0.20 (unclear)")) == ("red", "dim")
    assert terminal.style("1.50x ± 0.01") == ""
