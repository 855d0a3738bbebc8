"""Saving and loading a patched model: strict, and never quietly without its patch."""

from __future__ import annotations

import json

import pytest
import torch

import vtc
from tests import zoo
from tests.support import generate, logits
from vtc.checkpoint import CONFIG
from vtc.errors import CheckpointError


@pytest.fixture
def saved(tmp_path):
    model = zoo.build("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "pyramiddrop", budget=0.5, layers=(0.25, 0.5))
    want = generate(model, prompt).sequences
    vtc.save(model, tmp_path / "out")
    return tmp_path / "out", prompt, want


def edit(folder, **changes) -> None:
    config = json.loads((folder / CONFIG).read_text())
    config.update(changes)
    (folder / CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def test_a_loaded_model_answers_alike(saved):
    folder, prompt, want = saved
    model = vtc.load(folder)
    patch = vtc.patch_of(model)
    assert (patch.method, patch.budget.value) == (vtc.methods.PyramidDrop(layers=(0.25, 0.5)), 0.5)
    model.generation_config.eos_token_id = None
    assert torch.equal(generate(model, prompt).sequences, want)


def test_the_plain_model_loads_without_vtc(saved):
    """The folder is an ordinary checkpoint: nothing of ours is in the model's own config."""
    from transformers import AutoModelForImageTextToText

    folder, prompt, _ = saved
    assert "vtc" not in (folder / "config.json").read_text()
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert vtc.patch_of(model) is None
    assert logits(model, prompt).shape[1] == prompt["input_ids"].shape[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "schema version 2"),
        ({"budget": ...}, r"missing keys \['budget'\]"),
        ({"surprise": 1}, r"unknown keys \['surprise'\]"),
        ({"method": "pyramidrop"}, "pyramiddrop"),
        ({"options": {"depth": 3}}, "depth"),
        ({"options": [1]}, "must be an object"),
        ({"budget": 0}, "below 1 token"),
        ({"budget": True}, "bool"),
        ({"weights_sha256": "0" * 64}, "damaged or belong to another"),
    ],
)
def test_a_config_that_is_not_ours_is_refused(saved, changes, message):
    folder, _, _ = saved
    edit(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        vtc.load(folder)


def test_damaged_missing_and_foreign_files_are_refused(saved, tmp_path):
    folder, _, _ = saved
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        vtc.load(folder)
    (folder / CONFIG).write_text("{not json")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        vtc.load(folder)
    (folder / CONFIG).write_text("[]")
    with pytest.raises(CheckpointError, match="holds a list"):
        vtc.load(folder)
    (folder / CONFIG).unlink()
    with pytest.raises(CheckpointError, match="was not saved by vtc.save"):
        vtc.load(folder)
    with pytest.raises(CheckpointError, match="was not saved"):
        vtc.load(tmp_path / "nowhere")


def test_saving_without_a_patch_is_refused(tmp_path, model_of):
    with pytest.raises(CheckpointError, match="no patch to save"):
        vtc.save(model_of("llava"), tmp_path)


def test_an_interrupted_save_is_refused_not_loaded_without_its_patch(tmp_path, monkeypatch):
    model = zoo.build("llava")
    vtc.patch(model, "random", budget=4)
    vtc.save(model, tmp_path)
    monkeypatch.setattr("vtc.checkpoint.weights_sha256", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        vtc.save(model, tmp_path)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="cut off"):
        vtc.load(tmp_path)


def test_weights_that_do_not_fit_are_refused(saved):
    """An adapter injected into the model renames its weights: loading must not leave layers at random."""
    from safetensors.torch import load_file, save_file

    from vtc.checkpoint import weights_sha256

    folder, _, _ = saved
    weights = load_file(folder / "model.safetensors")
    key = next(k for k in weights if k.endswith("q_proj.weight"))
    weights[key.replace("q_proj", "q_proj.base_layer")] = weights.pop(key)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    edit(folder, weights_sha256=weights_sha256(folder))
    with pytest.raises(CheckpointError, match="do not fit"):
        vtc.load(folder)
