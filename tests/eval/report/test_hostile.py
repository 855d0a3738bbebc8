"""Strangers' texts in every output: it looks as it would with a harmless name, and the text can be read in it."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from tests.eval.report.hostile import HOSTILE, PLAIN
from tests.eval.report.test_tables import MEASURED, SETTINGS, line
from vtc.checkpoint.card import card
from vtc.eval.report import cost_table, export, html, plots, reliability, robustness, tables, terminal
from vtc.eval.report.write import file_name
from vtc.eval.results.summary import summarise
from vtc.eval.running import suite
from vtc.eval.running.run import evaluate
from vtc.eval.studies import compare, sensitivity_report
from vtc.files import escape
from vtc.files.atomic import write_json

MarkdownIt = pytest.importorskip("markdown_it", reason="rich brings it, older ones do not").MarkdownIt

NOWHERE = Path("nowhere")


def figures(text):
    """(summary, measured) of a run in which everything that has a name is called ``text``."""
    names = ["unpatched", f"{text}@0.25", f"{text}+share@4", "random@4"]
    kinds = [("color", "one-hop"), (text, f"{text} group"), ("shape", f"{text} group")] * 3
    lines = [
        line(name, n, float((n + m) % 3 > 0), *kind) for m, name in enumerate(names) for n, kind in enumerate(kinds)
    ]
    lines += [{"cell": "random@4", "closed": f"closed by {text}", "least": 5}]
    settings = SETTINGS | {"benchmark": {"name": text, "split": text}, "model_class": text, "model": text}
    settings |= {"processor": text, "attention": text, text: text}
    summary = summarise(lines, names, {}) | {"settings": settings}
    own = text.replace("/", ":")  # a figure with a slash stays out of the tables
    for name in names[:3]:
        summary["cells"][name]["metrics"] = {f"{own} head": 0.5, f"{own} more": 0.25}
    return summary, dict.fromkeys(names[:3], MEASURED["grid@0.25"])


def on_terminal(text):
    file = io.StringIO()
    terminal.show(Console(file=file, color_system=None), *figures(text))
    return file.getvalue()


def table_on_terminal(text):
    return on_terminal(text).partition("9 questions a cell")[0]  # the notes fold


def compared(text):
    cell = {"answers_changed": 1, "questions": 2, "a_only": 1, "b_only": 0, "mcnemar_p": 1.0}
    cell |= {"accuracy_a": 0.5, "accuracy_b": 0.5, "change": [0.0, 0.0, 0.0]}
    settings = {"model": [text, "other"]}
    return compare.markdown(
        {"a": text, "b": text, "settings": settings, "cells": {f"{text}@4": cell}, "only_a": [text], "only_b": [text]}
    )


def brittle(text):
    kind = {"questions": 1, "accuracy": 0.5, "drop": 0.1, "excess": [0.0, 0.0, 0.0]}
    return robustness.markdown(
        {"severity": {"noise": 0.1}, "order": [f"{text}@4"], "cells": {f"{text}@4": {"noise": kind}}}
    )


def sensitive(text):
    base = {"questions": 1, "tokens": 4.0, "accuracy": 0.5}
    settings = {"model": text, "model_class": text}
    return sensitivity_report.table(
        {
            "settings": settings,
            "unpatched": base,
            "attention": [0.5],
            "cuts": {},
            "schedule": [],
            "tolerance": 0.1,
            "depth": 1,
        }
    )


def carded(text):
    name = text.replace("/", ":").replace("\0", "")  # a folder's name has neither
    config = {"base_model": name, "method": name, "budget": 4, "options": {"a": text}, "compression": None}
    return card(NOWHERE, config | {"versions": {"vtc": "1"}, "weights_sha256": "0"}).partition("\n---\n")[2]


MARKDOWN = {
    "table": lambda text: tables.markdown(*figures(text), cost_table.markdown(figures(text)[1])),
    "suite": lambda text: suite.markdown({"one": figures(text)[0], "two": figures(text)[0]}),
    "compare": compared,
    "robustness": brittle,
    "sensitivity": sensitive,
    "card": carded,
}
OTHERS = {
    "html": lambda text: html.page(text, [html.Run(text, NOWHERE, *figures(text))] * 2, text),
    "csv": lambda text: export.comma_separated(*figures(text)),
    "latex": lambda text: export.latex(figures(text)[0]),
    "terminal": table_on_terminal,
}

each_text = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)


def shown(text):
    return escape.visible(text)


@each_text
@pytest.mark.parametrize("output", MARKDOWN | OTHERS)
def test_no_output_has_hidden_characters_or_other_lines(output, text):
    found, plain = (({**MARKDOWN, **OTHERS})[output](each) for each in (text, PLAIN))
    found.encode("utf-8")
    hidden = [c for c in found if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")]
    assert set(hidden) <= {"\n", "\u200c", "\u200d"}
    assert found.count("\n") == plain.count("\n")


def tokens(page):
    """The kinds of parts that Markdown is made of, in order, and the texts in them."""
    parsed = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(page)
    every = [t for token in parsed for t in [token, *(token.children or [])]]
    kinds = [t.type for t in every if t.type != "text" or t.content]
    return kinds, [t.content for t in every if t.type in ("text", "code_inline", "fence")]


@each_text
@pytest.mark.parametrize("output", MARKDOWN)
def test_markdown_has_the_parts_that_a_plain_name_gives(output, text):
    (kinds, texts), (plain, _) = tokens(MARKDOWN[output](text)), tokens(MARKDOWN[output](PLAIN))
    assert kinds == plain
    name = shown(text.replace("/", ":").replace("\0", "") if output == "card" else text)
    assert any(name.strip() in each for each in texts), "and it can be read"


@each_text
def test_github_makes_no_links_and_formulas(text):
    cell = escape.markdown(text)
    assert not re.search(r"://|(?i:www)\.|(?<!\\)[$|`*~]|\]\(", cell) and not re.search(r"[^\\\s]@\S", cell)


class Tags(HTMLParser):
    """Tags with the names of their attributes, and the texts."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, [name for name, _ in attributes]))

    def handle_endtag(self, tag):
        self.tags.append(("/" + tag, []))

    def handle_comment(self, data):
        self.tags.append(("comment", []))

    def handle_data(self, data):
        self.texts.append(data)


@each_text
def test_html_has_the_tags_that_a_plain_name_gives(text):
    found, plain = (Tags(OTHERS["html"](each)) for each in (text, PLAIN))
    assert found.tags == plain.tags and shown(text) in found.texts


@each_text
@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_csv_holds_no_formula_however_it_is_read(mark, text):
    page = OTHERS["csv"](text)
    fields = [field for row in csv.reader(io.StringIO(page), delimiter=mark) for field in row]
    numbers = [field for field in fields if re.fullmatch(r"[-+]?[\d.]+(e-?\d+)?", field)]
    assert not [f for f in fields if f.lstrip('"').startswith(tuple("=+-@＝＋－＠")) and f not in numbers]
    if mark == ",":
        rows = list(csv.DictReader(io.StringIO(page)))
        assert len(rows) == 4 and len({len(row) for row in rows}) == 1
        assert rows[1]["method"] == escape.spreadsheet(text) and escape.spreadsheet(f"accuracy:{text}") in rows[0]
        assert rows[1]["method"].replace("'", "") == shown(text).replace("'", ""), "and it can be read"
        assert float(rows[1]["change"]) < 0.5, "numbers stay numbers"


@each_text
def test_latex_has_no_special_character_left(text):
    known = r"\\text(?:backslash|asciitilde|asciicircum|less|greater|bar)\{\}|\\[&%$#_{}]"
    written = escape.latex(text)
    assert not re.search(r"[\\&%$#_{}~^<>|]", re.sub(known, "", written))
    assert written in OTHERS["latex"](text)
    first = OTHERS["latex"](text).splitlines()[0]
    assert first.startswith("% ") and first.endswith("; needs booktabs")


@each_text
def test_a_terminal_shows_the_text(text):
    assert shown(text) in on_terminal(text)


DRAWN = [
    "$x$",
    *(pytest.param(t, marks=pytest.mark.slow) for t in ("a_b^c", "\\frac", "$", "a\nb", "\x1b[1m", "\ud800")),
]


@pytest.mark.parametrize("text", DRAWN, ids=ascii)
def test_plots_draw_it(text, tmp_path):
    plots.pareto(*figures(text), tmp_path / "pareto.png")
    reliability.draw(figures(text)[0], tmp_path / "reliability.png")
    assert len(list(tmp_path.glob("*.png"))) == 2


def test_files_have_short_names_of_their_own():
    texts = [*HOSTILE.values(), "a/b", "a_b", "../x", "𠀀" * 80, "x" * 300, "x" * 301, "q1"]
    names = [file_name(text) for text in texts]
    assert len(set(names)) == len(texts) and names[-1] == "q1"
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,80}", name) for name in names)


def test_json_keeps_half_a_pair(tmp_path):
    write_json(tmp_path / "a.json", {"\ud800": "😀\udfff"})
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"\ud800": "😀\udfff"}


def test_a_whole_run_of_a_hostile_file(vlm, tmp_path, monkeypatch):
    from tests.eval.tiny import picture
    from vtc.eval.benchmarks import registry

    monkeypatch.setattr(plots, "available", lambda: False)
    picture(0).save(tmp_path / "0.png")
    texts = {name: text for name, text in HOSTILE.items() if name != "half a pair"}
    rows = [
        {"id": f"{text}{n}", "image": "0.png", "question": f"what {text} ?", "answer": text + "x", "type": text}
        for n, text in enumerate(texts.values())
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    benchmark = registry["jsonl"](data=tmp_path / "q.jsonl")
    quick = {"repeats": 0, "overlays": 1, "progress": False, "max_new_tokens": 1}
    folder = evaluate(*vlm, benchmark, ["random"], [0.5], tmp_path / "out", **quick).folder
    assert len(list((folder / "overlays").glob("*.png"))) == 1
    for name in ("table.md", "table.csv", "table.tex", "report.html"):
        page = (folder / name).read_text("utf-8")
        assert not [c for c in page if unicodedata.category(c) in ("Cc", "Cf") and c not in "\n\u200c\u200d"], name
    page = (folder / "report.html").read_text("utf-8")
    assert page.count("<script>") == 1 and "onerror=&quot;" in page or "onerror=" not in page
    assert not any("html" in kind or "link" in kind for kind in tokens((folder / "table.md").read_text("utf-8"))[0])
