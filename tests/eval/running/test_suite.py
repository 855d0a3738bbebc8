"""Several benchmarks in one command: a folder each, one table over all."""

from __future__ import annotations

import pytest

from vtc.errors import DataError, UnknownName
from vtc.eval.asking.generate import Answerer
from vtc.eval.benchmarks.jsonl import JSONL
from vtc.eval.report import plots
from vtc.eval.results.journal import clear
from vtc.eval.running import suite

QUICK = {"repeats": 0, "overlays": 0, "batch_size": 4, "progress": False, "max_new_tokens": 3}


class Other(JSONL):
    name = "other"


@pytest.fixture
def both(vlm, rows, write_rows, tmp_path, monkeypatch):
    """Two benchmarks of one file; runs them into tmp_path/out."""
    monkeypatch.setattr(plots, "available", lambda: False)
    file = write_rows(rows[:6])
    asked = [JSONL(data=file), Other(data=file, limit=3)]
    return lambda **options: suite.evaluate_all(
        *vlm, asked, ["random", "fastv"], [0.5, 0.25], tmp_path / "out", **QUICK, **options
    )


def test_a_folder_each_and_one_table(both, tmp_path):
    first, second = both()
    assert (first.folder, second.folder) == (tmp_path / "out" / "jsonl", tmp_path / "out" / "other")
    assert second.summary["cells"]["unpatched"]["questions"] == 3
    page = (tmp_path / "out" / "table.md").read_text()
    assert "| method | budget | jsonl | other | mean retention % |" in page and "jsonl 6, other 3" in page
    assert "| fastv | 25 % | least 5 | least 5 | - |" in page and page.count("| random |") == 2
    report = (tmp_path / "out" / "report.html").read_text()
    assert "All benchmarks" in report and 'href="#other"' in report and report.count("<h3>Every figure</h3>") == 2


def test_a_stopped_suite_goes_on(both, tmp_path, monkeypatch):
    whole = both()[1].summary
    (tmp_path / "out" / "table.md").unlink()
    results = tmp_path / "out" / "other" / "results.jsonl"
    results.write_bytes(b"".join(results.read_bytes().splitlines(keepends=True)[:5]))
    asked, real = [], Answerer.replies
    monkeypatch.setattr(Answerer, "replies", lambda self, inputs: asked.append(1) or real(self, inputs))
    assert both()[1].summary == whole and len(asked) == 4 and (tmp_path / "out" / "table.md").exists()


def test_starting_over_clears_the_tables_on_top_before_anything_is_asked(both, tmp_path, monkeypatch):
    both()
    out = tmp_path / "out"
    (out / "mine.txt").write_text("not theirs")
    monkeypatch.setattr(suite, "evaluate", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(pytest.fail.Exception):
        both()
    assert (out / "table.md").exists() and (out / "report.html").exists(), "without overwrite they stay"
    with pytest.raises(pytest.fail.Exception):
        both(overwrite=True)
    assert {p.name for p in out.iterdir()} == {".lock", "mine.txt", "jsonl", "other"}


def test_every_file_is_known_and_cleared(vlm, rows, write_rows, tmp_path):
    """Plots, pictures, robustness: a new kind of file must join ``OURS``, or starting over would leave it."""
    folder, options = tmp_path / "out", QUICK | {"repeats": 1, "overlays": 1}
    source = JSONL(data=write_rows(rows[:2]))
    suite.evaluate_all(*vlm, [source], ["random"], [0.5], folder, robustness=True, **options)
    assert "<h3>Robustness</h3>" in (folder / "report.html").read_text()
    found = {p.name for p in folder.iterdir()}
    assert found >= {"reliability.png", "robustness.json", "robustness.md", "pareto_ms.png", "overlays"}
    (folder / "mine.txt").write_text("not theirs")
    clear(folder)
    left = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}
    assert left == {"mine.txt"}


def summary(accuracy, retained):
    cell = {"accuracy": accuracy, "stderr": 0.01, "retention": retained, "questions": 10}
    return {"order": ["unpatched", "grid@64"], "cells": {"unpatched": cell | {"retention": 1.0}, "grid@64": cell}}


def test_mean_retention_is_the_plain_mean_over_benchmarks():
    page = suite.markdown({"a": summary(0.5, 0.9), "b": summary(0.25, 0.7)})
    assert "| grid | 64 | 50.0 ± 1.0 | 25.0 ± 1.0 | 80.0 |" in page
    for missing in (None, float("nan")):
        page = suite.markdown({"a": summary(0.5, 0.9), "b": summary(0.25, missing)})
        assert "| grid | 64 | 50.0 ± 1.0 | 25.0 ± 1.0 | - |" in page


def test_what_each_benchmark_reports_stands_below():
    own = summary(0.5, 0.9)
    own["cells"]["grid@64"] = own["cells"]["grid@64"] | {"metrics": {"f1": 0.87654, "a/f1": 0.5}}
    page = suite.markdown({"pope": own, "scenes": summary(0.5, 0.9)})
    assert "| method | budget | pope f1 |" in page and "| grid | 64 | 0.8765 |" in page
    assert "| unpatched | all | - |" in page and "reports" not in suite.markdown({"a": summary(0.5, 0.9)})


def test_each_of_several_has_its_own_data_folder(tmp_path):
    one, two = suite.parse("easy_vqa, jsonl,easy_vqa", tmp_path, limit=3)
    assert (one.name, one.data_dir, two.data_dir) == ("easy_vqa", tmp_path / "easy_vqa", tmp_path / "jsonl")
    (alone,) = suite.parse("easy_vqa", tmp_path)
    assert [b.split for b in suite.parse("scenes,mmmu,gqa,pope", None, prefer="dev")] == [
        "dev",
        "dev",
        "testdev",
        "test",
    ]
    assert suite.parse("scenes", None, split="test", prefer="dev")[0].split == "test"
    assert alone.data_dir == tmp_path
    with pytest.raises(UnknownName, match="easy_vqa"):
        suite.parse("scenes,easy_vq", None)
    with pytest.raises(DataError, match="names none"):
        suite.parse(" ,", None)
