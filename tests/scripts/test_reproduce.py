"""scripts/reproduce.sh: what it asks ``vtc eval`` to do, with an interpreter that only writes down its arguments."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from vtc.eval import cells, scenes

SCRIPT = Path(__file__).parents[2] / "scripts" / "reproduce.sh"
STUB = """#!/bin/sh
[ "$1" = - ] && exit 0
printf '%s\\n' "$*" >> "$CALLS"
exit "${CODE:-0}"
"""


@pytest.fixture
def reproduce(tmp_path):
    """Runs the script; gives (exit code, stderr, arguments of each call)."""
    stub, calls = tmp_path / "python", tmp_path / "calls"
    stub.write_text(STUB)
    stub.chmod(0o755)

    def run(*arguments, **variables):
        environment = {k: v for k, v in os.environ.items() if k not in ("LIMIT", "BENCHMARKS", "DATA_DIR", "PROCESSES")}
        environment |= {"PYTHON": str(stub), "CALLS": str(calls)} | variables
        done = subprocess.run(
            [SCRIPT, *map(str, arguments)], env=environment, capture_output=True, text=True, cwd=tmp_path
        )
        made = calls.read_text().splitlines() if calls.exists() else []
        return done.returncode, done.stderr, [line.split() for line in made]

    return run


def after(call, option):
    return call[call.index(option) + 1] if option in call else None


def test_two_steps_with_the_same_cells(reproduce):
    code, _, (accuracy, cost) = reproduce("my-vlm", "out")
    assert code == 0
    assert (after(accuracy, "--output"), after(cost, "--output")) == ("out/accuracy", "out/cost")
    assert after(accuracy, "--limit") is None and "pope" in after(accuracy, "--benchmarks").split(",")
    assert after(cost, "--limit") == "32" and after(cost, "--benchmarks") == "gqa"
    for option in ("--model", "--methods", "--budgets", "--seed", "--batch-size"):
        assert after(accuracy, option) == after(cost, option) is not None
    assert after(accuracy, "--timing-repeats") == "0" and after(cost, "--timing-repeats") is None


def test_the_methods_and_budgets_exist(reproduce):
    _, _, (call, _) = reproduce("my-vlm")
    specs, budgets = cells.parse_specs(after(call, "--methods")), cells.parse_budgets(after(call, "--budgets"))
    assert len(cells.plan(specs, budgets)) == 1 + len(specs) * 4
    assert [cells.Budget(b).tokens(576) for b in budgets] == [192, 128, 64, 32]
    assert [cells.Budget(b).tokens(2880) for b in budgets] == [960, 640, 320, 160]


def test_the_testbeds_model_is_asked_the_testbed(reproduce):
    _, _, calls = reproduce(scenes.checkpoint_path(), LIMIT="9")
    assert [(after(call, "--benchmarks"), after(call, "--limit")) for call in calls] == [("scenes", "9")] * 2


def test_processes_ask_and_one_measures(reproduce):
    _, _, (accuracy, cost) = reproduce("my-vlm", PROCESSES="4", BENCHMARKS="scenes")
    assert "torch.distributed.run" in accuracy and after(accuracy, "--nproc_per_node") == "4"
    assert "torch.distributed.run" not in cost


@pytest.mark.parametrize(("benchmarks", "of_cost"), [("a,b", "data/a"), ("a", "data")])
def test_files_of_several_benchmarks_have_folders(reproduce, tmp_path, benchmarks, of_cost):
    (tmp_path / "data").mkdir()
    _, _, (accuracy, cost) = reproduce("my-vlm", BENCHMARKS=benchmarks, DATA_DIR="data")
    assert (after(accuracy, "--data-dir"), after(cost, "--data-dir")) == ("data", of_cost)


FAILURES = [("1", True, 2), ("1", False, 1), ("2", True, 1), ("130", True, 1)]


@pytest.mark.parametrize(("code", "table", "steps"), FAILURES)
def test_failed_samples_do_not_stop_it_but_show(reproduce, tmp_path, code, table, steps):
    (tmp_path / "out" / "accuracy").mkdir(parents=True)
    if table:
        (tmp_path / "out" / "accuracy" / "table.md").touch()
    found, _, calls = reproduce("my-vlm", "out", CODE=code)
    assert (str(found), len(calls)) == (code, steps)


@pytest.mark.parametrize(
    ("arguments", "variables", "told"),
    [
        ((), {}, "MODEL [OUTPUT]"),
        (("a", "b", "c"), {}, "MODEL [OUTPUT]"),
        (("a",), {"LIMIT": "0"}, "LIMIT=0"),
        (("a",), {"PROCESSES": "two"}, "PROCESSES=two"),
        (("a",), {"DATA_DIR": "nowhere"}, "DATA_DIR=nowhere"),
        (("a",), {"PYTHON": "nowhere/python"}, "make setup"),
    ],
)
def test_wrong_use_is_told_before_anything_runs(reproduce, arguments, variables, told):
    code, error, calls = reproduce(*arguments, **variables)
    assert code == 2 and told in error and not calls
