"""Two runs against each other: counts and McNemar's p worked out by hand, and refusals that name what differs."""

from __future__ import annotations

import json
import math

import pytest
from typer.testing import CliRunner

from vtc.cli import app
from vtc.errors import DataError
from vtc.eval.studies.compare import compare, markdown, mcnemar


def answer(cell, n, said, score):
    place = {"cell": cell, "batch": 0, "row": n, "id": str(n), "type": ""}
    return place | {"answer": said, "expected": ["red"], "score": score, "tokens": 4.0}


@pytest.fixture
def run_of(tmp_path):
    """Writes a run folder from the scores of its cells; gives its path."""

    def write(name, more=(), limit=None, dtype="float32", **scores):
        folder = tmp_path / name
        folder.mkdir()
        benchmark = {"name": "jsonl", "split": "test", "limit": limit}
        config = {"benchmark": benchmark, "dtype": dtype, "cells": sorted(scores)}
        (folder / "config.json").write_text(json.dumps(config))
        lines = [
            answer(cell, n, "red" if s == "1" else "blue", float(s))
            for cell, ss in scores.items()
            for n, s in enumerate(ss)
        ]
        (folder / "results.jsonl").write_text("".join(json.dumps(x) + "\n" for x in [*lines, *more]))
        return folder

    return write


@pytest.mark.parametrize(
    ("a_only", "b_only", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 2**5),
        (1, 5, 2 * (1 + 6) / 2**6),  # 6 choose 0 and 1, both tails
        (8, 2, 2 * (1 + 10 + 45) / 2**10),
        (3, 3, 1.0),
    ],
)
def test_mcnemar(a_only, b_only, p):
    assert mcnemar(a_only, b_only) == pytest.approx(p) == mcnemar(b_only, a_only)


def test_drift(run_of):
    a = run_of("a", unpatched="1111111111", grid="1111111100")
    b = run_of("b", unpatched="1111111111", grid="0000011110", dtype="bfloat16", fastv="1111111111")
    found = compare(a, b)
    assert found["settings"] == {"dtype": ["float32", "bfloat16"]}
    assert found["only_a"] == [] and found["only_b"] == ["fastv"]
    same, cell = found["cells"]["unpatched"], found["cells"]["grid"]
    assert same["change"] == (0.0, 0.0, 0.0) and same["answers_changed"] == 0 and same["mcnemar_p"] == 1.0
    assert (cell["accuracy_a"], cell["accuracy_b"]) == (0.8, 0.4)
    assert (cell["a_only"], cell["b_only"], cell["answers_changed"]) == (5, 1, 6)
    assert cell["mcnemar_p"] == pytest.approx(14 / 64)
    middle, low, high = cell["change"]
    assert middle == pytest.approx(-0.4) and low < middle < high
    page = markdown(found)
    assert "| grid | all | 80.0 | 40.0 | -40.0 [" in page and "| 6 of 10 | 5 | 1 | 0.22 |" in page
    assert "dtype: 'float32' in A, 'bfloat16' in B" in page and "only in B: fastv" in page


def test_questions_that_failed_in_one_run_are_not_compared(run_of):
    failed = {"cell": "unpatched", "batch": 0, "row": 3, "id": "3", "type": "", "error": "q:4: broken"}
    closed = {"cell": "fastv", "batch": 0, "closed": "keeps all", "least": 9}
    found = compare(run_of("a", unpatched="1110"), run_of("b", [failed, closed], unpatched="111"))
    assert found["cells"]["unpatched"]["questions"] == 3 and list(found["cells"]) == ["unpatched"]
    nothing = compare(run_of("c", [failed | {"id": "0"}]), run_of("d", [failed | {"id": "0"}]))["cells"]["unpatched"]
    assert nothing["questions"] == 0 and nothing["accuracy_a"] is None and math.isnan(nothing["change"][0])


def test_other_questions_are_refused_with_what_differs(run_of, tmp_path):
    a = run_of("a", unpatched="1111")
    with pytest.raises(DataError, match="different questions.*limit: None and 3"):
        compare(a, run_of("b", limit=3, unpatched="111"))
    with pytest.raises(DataError, match="1 question.*one run only, the first '3'"):
        compare(a, run_of("c", unpatched="111"))
    other = answer("unpatched", 3, "red", 1.0) | {"expected": ["blue"]}
    with pytest.raises(DataError, match=r"'3' accepts \['red'\] in one and \['blue'\]"):
        compare(a, run_of("d", [other], unpatched="111"))
    with pytest.raises(DataError, match="no run folder"):
        compare(a, tmp_path / "nowhere")


def test_the_command(run_of, tmp_path):
    a, b = run_of("a", unpatched="1110"), run_of("b", unpatched="0110")
    result = CliRunner().invoke(app, ["eval", "--compare", str(a), str(b), "--output", str(tmp_path / "out")])
    assert result.exit_code == 0 and "1 of 4" in result.output
    assert json.loads((tmp_path / "out" / "compare.json").read_text())["cells"]["unpatched"]["a_only"] == 1
    assert CliRunner().invoke(app, ["eval", "--compare", str(a), str(b)]).exit_code == 0
    result = CliRunner().invoke(app, ["eval", "--compare", str(a), str(tmp_path)])
    assert result.exit_code == 1 and "no run folder" in result.output
    result = CliRunner().invoke(app, ["eval", "--compare", str(a), str(b), "--model", "x"])
    assert result.exit_code == 1 and "leave out MODEL" in result.output
    result = CliRunner().invoke(app, ["eval", "--data", "q.jsonl", "--output", str(tmp_path / "out")])
    assert result.exit_code == 1 and "--model" in result.output
