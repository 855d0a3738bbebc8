"""What a run compares: the unpatched model, and each method at each budget.

``name[:option=value ...][+flag ...]``, several one after the other with a slash: ``divprune+share/fastv:layer=2``.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from vtc.errors import BudgetError, UnknownName, VTCError
from vtc.methods import registry
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


def build(spec: str) -> Method:
    """``visionzip``, ``divprune+share``, ``fastv:layer=3``, ``visionzip/fastv``: the method it spells."""
    if "/" in spec:
        try:
            return registry["combined"](methods=tuple(build(part) for part in spec.split("/")))
        except (TypeError, ValueError) as error:
            raise VTCError(f"method {spec!r}: {error}; see vtc methods") from None
    head, *flags = spec.strip().split("+")
    name, *pairs = head.split(":")
    if pairs and "=" not in pairs[0] and pairs[0].isidentifier() and not ours(name):
        make = imported(name, pairs.pop(0))
    else:
        make = registry[name]
    options: dict[str, Any] = dict.fromkeys(flags, True)
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise VTCError(f"method {spec!r}: {pair!r} is not option=value; write {name}:option=value, or {name}+flag")
        options[key] = literal(value)
    known = [f.name for f in fields(make) if f.init]
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise UnknownName(f"method {name!r} has no option {key!r}; {hint}")
    try:
        return make(**options)
    except (TypeError, ValueError) as error:
        raise VTCError(f"method {spec!r}: {error}; see vtc methods") from None


def ours(name: str) -> bool:
    """Whether a method is registered by this name, and not by a module of the same name that a spec may mean."""
    return name in registry and registry[name].__module__.partition(".")[0] != name


def imported(module: str, name: str) -> type[Method]:
    """A method of somebody's own, ``module:Class`` on the command line, from what is installed or the present
    folder."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise UnknownName(
            f"module {module!r} cannot be imported ({error}); install it, or start where it lies"
        ) from None
    finally:
        sys.path.remove(here)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UnknownName(f"{module}:{name} is no class of a method; give a subclass of vtc.methods.Method")
    return found


def spell(method: Method) -> str:
    """The text that ``build`` makes ``method`` of, without options that are at their defaults."""
    options = {f.name: getattr(method, f.name) for f in fields(method) if getattr(method, f.name) != f.default}
    return ":".join([method.name, *(f"{name}={json.dumps(value)}" for name, value in options.items())])


def literal(text: str) -> Any:
    """``3``, ``0.5``, ``true`` as JSON reads them; anything else is a text."""
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except ValueError:
        return text


def parse_specs(text: str) -> list[str]:
    """``visionzip,adaptive:rest=[1,2]``, commas in brackets are of an option; ``all`` is every registered method."""
    specs = [spec.strip() for spec in re.split(r",(?![^\[\]]*\])", text) if spec.strip()]
    return [name for spec in specs for name in (registry if spec == "all" else [spec])]


def parse_budgets(text: str) -> list[int | float]:
    """``0.5,64,12.5%``: whole numbers are tokens, the others shares of a picture's tokens."""
    return [parse_budget(part.strip()) for part in text.split(",") if part.strip()]


def parse_budget(text: str) -> int | float:
    try:
        value = (
            float(text[:-1]) / 100 if text.endswith("%") else int(text) if text.lstrip("+-").isdigit() else float(text)
        )
    except ValueError:
        raise BudgetError(
            f"budget {text!r} is not a number; give tokens like 64, or a share like 0.25 or 25%"
        ) from None
    return Budget(value).value
