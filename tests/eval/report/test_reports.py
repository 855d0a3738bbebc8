"""The figures of a run for spreadsheets, papers and browsers."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess

import pytest
from PIL import Image

from tests.eval.report.test_tables import MEASURED, summary  # noqa: F401  # a fixture
from vtc.eval.report import export, html
from vtc.files.atomic import write_json

BROWSER = next((b for b in ("chromium", "chromium-browser", "google-chrome") if shutil.which(b)), None)


def test_csv_holds_every_cell(summary):  # noqa: F811
    rows = list(csv.DictReader(io.StringIO(export.comma_separated(summary, MEASURED))))
    assert len(rows) == len(summary["order"])
    grid = next(row for row in rows if row["method"] == "grid")
    assert float(grid["accuracy"]) == summary["cells"]["grid@0.25"]["accuracy"]
    assert float(grid["speedup_iqr"]) == 0.1
    assert float(grid["prefill_ms"]) == MEASURED["grid@0.25"]["timing"]["prefill_ms"]
    assert {"accuracy:color", "accuracy:digit_beside"} <= set(grid)
    closed = next(row for row in rows if row["method"] == "fastv")
    assert closed["closed"] == "keeps all 16" and closed["accuracy"] == ""
    assert "nan" not in export.comma_separated(summary, {})


def test_latex_is_a_booktabs_table(summary):  # noqa: F811
    text = export.latex(summary)
    rows = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert {line.count("&") for line in rows} == {1} and text.count("\\begin") == text.count("\\end") == 1
    assert "62.5" in text and "least 5" in text and "unpatched & \\multicolumn" in text
    assert text.count("\\textbf") == 1 and "25 \\%" in text
    assert re.search(r"(?<!\\\\)[%#_](?!.*booktabs)", "\n".join(rows).replace("\\%", "").replace("\\_", "")) is None


@pytest.mark.parametrize(
    ("text", "want"),
    [("a_b", "a\\_b"), ("50 %", "50 \\%"), ("x:y=1&2", "x:y=1\\&2"), ("{~}", "\\{\\textasciitilde{}\\}")],
)
def test_latex_escapes(text, want):
    assert export.escape(text) == want


def test_the_best_of_a_column_is_bold_and_ties_are_all():
    cells = {"unpatched": {"accuracy": 1.0, "stderr": 0.0}}
    cells |= {
        f"{name}@0.5": {"accuracy": value, "stderr": 0.01} for name, value in (("a", 0.9001), ("b", 0.9), ("c", 0.8))
    }
    cells["random@0.5"] = {"accuracy": 0.5, "stderr": 0.01}
    settings = {"model_class": "M", "benchmark": {"name": "n"}}
    text = export.latex({"cells": cells, "order": list(cells), "settings": settings})
    assert [line.split(" &")[0] for line in text.splitlines() if "textbf" in line] == ["a", "b"]
    assert text.index("random") < text.index("\na &"), "baselines come first"


@pytest.fixture
def run(summary, tmp_path):  # noqa: F811
    (tmp_path / "overlays").mkdir()
    Image.new("RGB", (9, 9), "red").save(tmp_path / "overlays" / "one.png")
    return html.Run("scenes", tmp_path, summary, MEASURED)


def test_html_is_whole_in_itself(run):
    page = html.page("a <model>", [run, html.Run("more", run.folder, run.summary, {})], "vtc eval --x <y>")
    assert "<model>" not in page and "a &lt;model&gt;" in page and "--x &lt;y&gt;" in page
    assert not re.search(r"(src|href)=.(?!data:|#)", page), "nothing is fetched"
    assert page.count("data:image/png;base64,") == 2 and 'href="#more"' in page
    assert (
        "62.5 ± 18.3" in page
        and "least 5" in page
        and "<td class=bad>0.80x ± 0.05 (slower)</td>" in page
        and "digit_beside" in page
    )


def test_html_has_a_section_for_all_that_was_measured(run):
    page = html.page("report", [run])
    assert "Beyond accuracy" in page and "<td>37.5</td>" in page, "three of eight right answers were lost"
    assert "Time, memory and energy" in page and "2.5 MB" in page and "unavailable" in page
    assert "Robustness" not in page and "What the benchmark reports" not in page, "this run has none"
    own = run.summary["cells"]["grid@0.25"]
    run.summary["cells"]["grid@0.25"] = own | {"metrics": {"f1": 0.125}}
    kinds = {"noise": {"questions": 8, "accuracy": 0.5, "drop": 0.125, "excess": [0.25, 0.1, 0.4]}}
    write_json(
        run.folder / "robustness.json",
        {"severity": {"noise": 0.1}, "order": ["grid@0.25"], "cells": {"grid@0.25": kinds}},
    )
    Image.new("RGB", (9, 9), "blue").save(run.folder / "reliability.png")
    more = html.page("report", [run])
    assert "<td>12.5 (+25.0 [+10.0, +40.0])</td>" in more and "Severities: noise 0.1" in more
    assert "<th>f1</th>" in more and "<td>0.125</td>" in more
    assert more.count("data:image/png") == page.count("data:image/png") + 1 and "Accuracy over confidence" in more


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_html_in_a_browser(run, tmp_path):
    """Chromium lays it out; a click on a head sorts the rows by that column."""
    click = "<script>document.querySelectorAll('table')[1].tHead.rows[0].cells[2].click()</script>"
    page = html.page("report", [run])
    (tmp_path / "report.html").write_text(page.replace("</body>", click + "</body>"), encoding="utf-8")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    command = [BROWSER, *quiet, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1200,2000"]
    shot, target = tmp_path / "shot.png", (tmp_path / "report.html").as_uri()
    subprocess.run([*command, f"--screenshot={shot}", target], check=True, capture_output=True)
    picture = Image.open(shot).convert("RGB")
    assert picture.size == (1200, 2000) and len(picture.getcolors(1 << 24)) > 50
    out = subprocess.run([*command, "--dump-dom", target], check=True, capture_output=True).stdout.decode()
    table = re.findall(r"<table>.*?</table>", out, re.S)[1]
    shown = [float(x) for x in re.findall(r"<tr[^>]*><td>[^<]*</td><td>[^<]*</td><td>([\d.]+) ±", table)]
    assert len(shown) >= 2 and shown == sorted(shown)
