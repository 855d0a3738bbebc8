"""Method specs and budgets as people type them."""

from __future__ import annotations

import pytest

from vtc.errors import BudgetError
from vtc.eval.cells import parse_budgets, parse_specs, plan
from vtc.methods import registry


def test_specs():
    assert parse_specs("visionzip, grid,") == ["visionzip", "grid"]
    assert parse_specs("adaptive:rest=[1,2]:layer=3, pool,divprune:rest=[1, 2]+share/fastv") == [
        "adaptive:rest=[1,2]:layer=3",
        "pool",
        "divprune:rest=[1, 2]+share/fastv",
    ]
    assert parse_specs("all") == list(registry)


def test_budgets():
    assert parse_budgets("0.5,64, 12.5%,1,1.0") == [0.5, 64, 0.125, 1, 1.0]
    assert [type(b) for b in parse_budgets("1,1.0")] == [int, float]


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "nan", "inf", "many", "0%", "150%", "1e400", "True"])
def test_wrong_budgets(text):
    with pytest.raises(BudgetError):
        parse_budgets(text)


def test_plan():
    cells = plan(["grid", "random", "grid"], [0.5, 64, 0.5])
    assert [c.name for c in cells] == ["unpatched", "grid@0.5", "grid@64", "random@0.5", "random@64"]
    assert [c.patched for c in cells] == [False, True, True, True, True]
    with pytest.raises(BudgetError):
        plan(["grid"], [])
    assert len(plan([], [])) == 1
