"""docs/weights.md names every pass and every recipe there is, and its recipes compress a model."""

from __future__ import annotations

import re

import pytest

import vtc
from tests import zoo
from tests.docs.pages import ROOT, SPAN, fences, read
from tests.own import known
from tests.weights.runs import prompts
from vtc.weights.passes import registry
from vtc.weights.recipe import NAMED

PROSE = fences("docs/weights.md", read("docs/weights.md"))[1]
SPANS = [span.replace("\\|", "|") for span in SPAN.findall(PROSE)]
RECIPES = sorted({s for s in SPANS if all(part.split(":")[0] in registry for part in s.split("|"))})


def test_every_pass_and_named_recipe_is_told():
    told = {name for recipe in RECIPES for name in re.findall(r"(?:^|\|)(\w+)", recipe)}
    assert told | set(re.findall(r'"(\w+)"', PROSE)) >= set(known(registry))
    assert set(NAMED) <= set(SPANS)


def test_every_test_that_is_named_is_there_once():
    """In a room of tests/weights, unless its whole path is given (tests/docs/test_names.py sees to that)."""
    named = {span for span in SPANS if re.fullmatch(r"test_\w+\.py", span)}
    assert len(named) > 20
    found = {name: len(list((ROOT / "tests" / "weights").rglob(name))) for name in named}
    assert {name: count for name, count in found.items() if count != 1} == {}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes(recipe):
    model = zoo.build("llava")
    before = sum(p.numel() for p in model.parameters())
    vtc.compress(model, recipe, prompts(model), progress=False)
    assert sum(p.numel() for p in model.parameters()) < before
