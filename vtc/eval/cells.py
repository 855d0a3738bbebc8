"""What a run compares: the unpatched model, and each method at each budget."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from vtc.errors import BudgetError
from vtc.methods import registry
from vtc.methods._spelling import build
from vtc.methods.base import Method
from vtc.tokens import Budget

UNPATCHED = "unpatched"


@dataclass(frozen=True)
class Cell:
    """One cell of the table: a method as it was spelled and a budget; both empty for the unpatched model."""

    spec: str = ""
    budget: int | float | None = None

    @property
    def name(self) -> str:
        return f"{self.spec}@{self.budget!r}" if self.spec else UNPATCHED

    @property
    def patched(self) -> bool:
        return bool(self.spec)

    def method(self) -> Method:
        """The method with its options."""
        return build(self.spec)


def plan(specs: Iterable[str], budgets: Iterable[int | float]) -> list[Cell]:
    """The unpatched cell, then every method at every budget. Every spec and budget is checked here."""
    specs, budgets = list(dict.fromkeys(specs)), list(dict.fromkeys(Budget(b).value for b in budgets))
    for spec in specs:
        build(spec)
    if specs and not budgets:
        raise BudgetError("no budget given; give at least one, like 0.25 or 64")
    return [Cell(), *(Cell(spec, budget) for spec in specs for budget in budgets)]


def parse_specs(text: str) -> list[str]:
    """``visionzip,adaptive:rest=[1,2]``, commas in brackets are of an option; ``all`` is every registered method."""
    specs = [spec.strip() for spec in re.split(r",(?![^\[\]]*\])", text) if spec.strip()]
    return [name for spec in specs for name in (registry if spec == "all" else [spec])]


def parse_budgets(text: str) -> list[int | float]:
    """``0.5,64,12.5%``: whole numbers are tokens, the others shares of a picture's tokens."""
    return [Budget.of(part).value for part in text.split(",") if part.strip()]
