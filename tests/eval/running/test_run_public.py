"""Runs of public benchmarks on a tiny model: their figures reach the summary and the table, and survive a restart."""

from __future__ import annotations

import json

import pytest

from tests.eval import public
from tests.eval.public import benchmark_of, write
from vtc.eval.asking.generate import Answerer
from vtc.eval.benchmarks import registry
from vtc.eval.report import plots
from vtc.eval.results.json_lines import first_errors, read
from vtc.eval.running.run import evaluate

QUICK = {"repeats": 0, "overlays": 0, "batch_size": 3, "progress": False, "max_new_tokens": 2}


@pytest.fixture(autouse=True)
def no_plot(monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)


@pytest.mark.parametrize(
    ("name", "reply", "headline"),
    [("pope", "Yes", ("f1", "0.6667")), ("mme", "no", ("perception", "0")), ("mmbench", "A", ("circular", "0"))],
)
def test_own_figures(name, reply, headline, vlm, tmp_path, monkeypatch):
    monkeypatch.setattr(Answerer, "replies", lambda self, inputs: [(reply, 0.5)] * len(inputs["input_ids"]))
    monkeypatch.setattr("vtc.eval.running.runner.Runner.tokens", lambda self, asked, inputs: [16.0] * len(asked))
    benchmark = benchmark_of(name, tmp_path)
    results = evaluate(*vlm, benchmark, ["random"], [0.5], tmp_path / "out", **QUICK)
    summary = json.loads((results.folder / "summary.json").read_text())
    for cell in ("unpatched", "random@0.5"):
        assert summary["cells"][cell]["metrics"] == pytest.approx(results.summary["cells"][cell]["metrics"])
        assert next(iter(results.summary["cells"][cell]["metrics"])) == headline[0]
    page = (results.folder / "table.md").read_text()
    assert f"| method | budget | **{headline[0]}** |" in page and f"| random | 50 % | {headline[1]} |" in page
    assert "/" not in page.split("| method | budget | **")[1].split("\n")[0], "the parts stay in the summary"


def test_a_whole_run_is_the_same_after_an_interruption(vlm, tmp_path, monkeypatch):
    benchmark = benchmark_of("pope", tmp_path)
    whole = evaluate(*vlm, benchmark, ["random"], [0.5], tmp_path / "whole", **QUICK)
    real, calls = Answerer.replies, []

    def replies(self, inputs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, inputs)

    monkeypatch.setattr(Answerer, "replies", replies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(*vlm, benchmark, ["random"], [0.5], tmp_path / "cut", **QUICK)
    again = registry["pope"](data_dir=tmp_path)
    assert evaluate(*vlm, again, ["random"], [0.5], tmp_path / "cut", **QUICK).summary == whole.summary
    assert len(list(read(tmp_path / "cut" / "results.jsonl"))) == 12
    assert (tmp_path / "cut" / "summary.json").read_bytes() == (tmp_path / "whole" / "summary.json").read_bytes()


def test_soft_scores_have_a_soft_floor(vlm, tmp_path):
    benchmark = benchmark_of("vqav2", tmp_path)
    answers = [
        {"answer": f"odd {n}" if n > 3 else "red", "answer_confidence": "yes", "answer_id": n} for n in range(1, 11)
    ]
    write(tmp_path, public.VQAV2, [row | {"answers": answers} for row in public.VQAV2.rows])
    results = evaluate(*vlm, benchmark, [], [], tmp_path / "out", **QUICK)
    assert results.summary["floor"] == pytest.approx(0.9), "always saying red is right by 0.9, not by 1"


def test_a_pair_that_was_torn_is_an_error_and_not_in_the_sums(vlm, tmp_path):
    write(tmp_path, public.MME, public.MME.rows[:3])
    results = evaluate(*vlm, registry["mme"](data_dir=tmp_path), [], [], tmp_path / "out", **QUICK)
    cell = results.summary["cells"]["unpatched"]
    assert cell["errors"] == 1 and cell["questions"] == 3 and set(cell["metrics"]) >= {"perception", "cognition"}
    assert "a pair has 2" in first_errors(results.folder / "results.jsonl", 1)[0]
