"""A folder that holds what a method learned: its cells are the trained ones, the unpatched cell is the plain model."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

import vtc
from tests.patching.test_learned_methods import stir
from vtc.errors import VTCError
from vtc.eval import scenes
from vtc.eval.asking.load import load
from vtc.eval.cells import Cell
from vtc.eval.costs.measure import entered


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = scenes.checkpoint_path()
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32)
    vtc.patch(model, "perceiver", budget=6, latents=12)
    stir(model)
    return vtc.save(model, tmp_path_factory.mktemp("trained") / "out", AutoProcessor.from_pretrained(path))


@torch.no_grad()
def answer(model, processor) -> torch.Tensor:
    sample = next(scenes.samples("dev", 9))
    return model(**processor(images=sample.image, text=sample.prompt, return_tensors="pt")).logits


def test_cells_of_a_trained_folder(folder):
    model, processor = load(str(folder), "float32", "cpu", learned=True)
    base, _ = load(str(scenes.checkpoint_path()), "float32", "cpu")
    trained = answer(model, processor)
    plain = answer(base, processor)
    with entered(model, Cell()):
        assert torch.equal(answer(model, processor), plain)
    with entered(model, Cell("perceiver:latents=12", 6)):
        assert torch.equal(answer(model, processor), trained)
    with entered(model, Cell("divprune+share", 6)), entered(base, Cell("perceiver:latents=12", 6)):
        assert torch.equal(answer(model, processor), answer(base, processor))  # untrained
        assert not torch.equal(answer(base, processor), trained)
    assert torch.equal(answer(model, processor), trained)


@pytest.mark.parametrize("spec", ["perceiver", "perceiver:latents=12/fastv"])
def test_a_cell_of_another_learned_method_is_refused(folder, spec):
    model, _ = load(str(folder), "float32", "cpu", learned=True)
    with pytest.raises(VTCError, match="this model learned Perceiver.*give the same options"):
        entered(model, Cell(spec, 6))


def test_a_run_asks_a_trained_folder(folder, tmp_path):
    """Its own patch is no obstacle: each cell enters it, or leaves it."""
    from vtc.eval.benchmarks.scenes import Scenes
    from vtc.eval.running.run import evaluate

    model, processor = load(str(folder), "float32", "cpu", learned=True)
    quick = {"repeats": 0, "overlays": 0, "progress": False}
    evaluate(model, processor, Scenes(split="dev", limit=2), ["perceiver:latents=12"], [6], tmp_path / "run", **quick)
    cells = json.loads((tmp_path / "run" / "summary.json").read_text())["cells"]
    assert {name: cell["questions"] for name, cell in cells.items()} == {"unpatched": 2, "perceiver:latents=12@6": 2}
    vtc.patch(model, "divprune", budget=6)
    with pytest.raises(VTCError, match="the model is patched"):
        evaluate(model, processor, Scenes(limit=2), ["random"], [6], tmp_path / "other", **quick)


def test_commands_for_plain_models_refuse_it(folder):
    with pytest.raises(VTCError, match="holds what a method or an adapter learned"):
        load(str(folder), "float32", "cpu")
