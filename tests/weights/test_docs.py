"""What docs/weights.md tells people to write works, and it names every pass there is."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from typer.testing import CliRunner

import vtc
from tests.eval.tiny import tiny_llava, tiny_processor
from tests.weights.runs import prompts
from vtc.cli import app
from vtc.weights.passes import registry

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
FENCES = re.findall(r"```(python)?\n(.*?)```", TEXT, flags=re.DOTALL)
BLOCKS = [code for language, code in FENCES if language]
COMMANDS = [line for language, code in FENCES if not language for line in code.splitlines() if line.startswith("vtc ")]
PROSE = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
SPANS = [span.replace("\\|", "|") for span in re.findall(r"`([^`\n]+)`", PROSE)]
RECIPES = sorted({s for s in SPANS if all(part.split(":")[0] in registry for part in s.split("|"))})


def test_every_pass_and_named_recipe_is_told():
    from vtc.weights.recipe import NAMED

    assert {name for recipe in RECIPES for name in re.findall(r"(?:^|\|)(\w+)", recipe)} | set(
        re.findall(r'"(\w+)"', PROSE)
    ) >= set(registry)
    assert set(NAMED) <= set(SPANS)


def test_every_test_that_is_named_is_there():
    named = set(re.findall(r"`((?:tests/\w+/)?test_\w+\.py)`", TEXT))
    assert len(named) > 20
    assert not [name for name in named if not (ROOT / (name if "/" in name else f"tests/weights/{name}")).is_file()]


def test_every_function_that_is_named_is_there():
    import importlib

    named = {s.split("(")[0] for s in SPANS if s.startswith(("vtc.weights.", "vtc.save"))}
    assert named
    for span in named:
        module, _, name = span.rpartition(".")
        try:
            importlib.import_module(span)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), name), span


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes(recipe, model):
    before = sum(p.numel() for p in model.parameters())
    vtc.compress(model, recipe, prompts(model), progress=False)
    assert sum(p.numel() for p in model.parameters()) < before


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python(number, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = dict.fromkeys(("model", "original", "teacher"), model)
    exec(BLOCKS[number], {"vtc": vtc, "batches": prompts(model), "processor": tiny_processor(), **names})


@pytest.mark.slow
def test_commands(tmp_path, monkeypatch):
    """In the order they stand in: later ones read what earlier ones wrote."""
    monkeypatch.chdir(tmp_path)
    tiny_llava().save_pretrained("my-vlm")
    tiny_processor().save_pretrained("my-vlm")
    for command in COMMANDS:
        if "compressed-tensors" in command and not find_spec("compressed_tensors"):
            continue  # --verify needs its reader; test_compress_command.py has it where that is installed
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, f"{command}: {done.output}"
