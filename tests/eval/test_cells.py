"""Method specs and budgets as people type them."""

from __future__ import annotations

import sys

import pytest

from vtc.errors import BudgetError, UnknownName, VTCError
from vtc.eval.cells import build, parse_budgets, parse_specs, plan
from vtc.methods import registry


def test_specs():
    assert build("visionzip").name == "visionzip"
    assert build("divprune+share").share is True
    assert build("fastv:layer=3").layer == 3
    assert build("random:seed=4:layer=0.5").layer == 0.5
    assert parse_specs("visionzip, grid,") == ["visionzip", "grid"]
    assert parse_specs("adaptive:rest=[1,2]:layer=3, pool,divprune:rest=[1, 2]+share/fastv") == [
        "adaptive:rest=[1,2]:layer=3",
        "pool",
        "divprune:rest=[1, 2]+share/fastv",
    ]
    assert parse_specs("all") == list(registry)


@pytest.mark.parametrize(
    ("spec", "kind", "word"),
    [
        ("visonzip", UnknownName, "visionzip"),
        ("fastv:layr=2", UnknownName, "'layer'"),
        ("fastv:layer", VTCError, "option=value"),
        ("fastv:layer=0", VTCError, "layer"),
        ("fastv+share", VTCError, "share"),
        ("grid+fast", UnknownName, "fast"),
    ],
)
def test_wrong_specs_name_the_right_ones(spec, kind, word):
    with pytest.raises(kind, match=word):
        build(spec)


def test_a_module_whose_method_has_the_modules_name(tmp_path, monkeypatch):
    """The first spec imports it, and the name is registered from then on."""
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom vtc.methods import register\nfrom vtc.methods.grid import Grid\n\n\n"
        "@register('mine')\n@dataclass(frozen=True)\nclass Mine(Grid):\n    name = 'mine'\n    part: float = 1.0\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_entries", dict(registry.items()))
    plain, with_option, by_name = (build(spec) for spec in ("mine:Mine", "mine:Mine:part=0.5+share", "mine:part=0.5"))
    assert [m.part for m in (plain, with_option, by_name)] == [1.0, 0.5, 0.5] and with_option.share
    monkeypatch.delitem(sys.modules, "mine")


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
