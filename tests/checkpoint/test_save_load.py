"""Saving and loading a patched model: strict, and never quietly without its patch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import vtc
from tests import zoo
from tests.checkpoint.edits import edit, rehash
from tests.eval.running.test_full_disk import no_file_beyond
from tests.support import generate, logits
from vtc.checkpoint.save_load import CONFIG
from vtc.errors import CheckpointError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def saved(tmp_path):
    model = zoo.build("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "pyramiddrop", budget=0.5, layers=(0.25, 0.5))
    want = generate(model, prompt).sequences
    vtc.save(model, tmp_path / "out")
    return tmp_path / "out", prompt, want


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
        ({"schema_version": 3}, "schema version 3"),
        ({"budget": ...}, r"missing keys \['budget'\]"),
        ({"surprise": 1}, r"unknown keys \['surprise'\]"),
        ({"method": "pyramidrop"}, "pyramiddrop"),
        ({"options": {"depth": 3}}, "depth"),
        ({"options": [1]}, "'options' must be an object"),
        ({"budget": 0}, "below 1 token"),
        ({"budget": True}, "'budget' must be a number or null, not True"),
        ({"method": None}, "both be null or both be given"),
        ({"method": None, "budget": None, "options": {"layer": 1}}, "both be null"),
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
    with pytest.raises(CheckpointError, match="model.safetensors hashes to .* damaged"):
        vtc.load(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match="model.safetensors was saved and cannot be read"):
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
        vtc.save(model_of("llava"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_save_that_fails_leaves_what_was_there(saved, monkeypatch):
    folder, _, _ = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = zoo.build("llava", seed=1)
    vtc.patch(model, "random", budget=4)
    monkeypatch.setattr("vtc.checkpoint.save_load.contents_sha256", lambda folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        vtc.save(model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_checkpoint_is_replaced_whole_and_other_files_stay(saved):
    folder, _, _ = saved
    (folder / "README.md").write_text("mine")
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"of an older save")
    model = zoo.build("llava", seed=1)
    vtc.patch(model, "random", budget=4)
    vtc.save(model, folder, verify=True)
    assert vtc.patch_of(vtc.load(folder)).method.name == "random"
    assert (folder / "README.md").read_text() == "mine"
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]


def test_a_link_stays_a_link(saved):
    folder, _, _ = saved
    link = folder.parent / "link"
    link.symlink_to(folder)
    model = zoo.build("llava", seed=1)
    vtc.patch(model, "random", budget=4)
    vtc.save(model, link)
    assert link.is_symlink() and vtc.patch_of(vtc.load(folder)).method.name == "random"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["link", folder.name]


def test_a_folder_of_other_things_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    model = zoo.build("llava")
    vtc.patch(model, "random", budget=4)
    with pytest.raises(CheckpointError, match="not written by vtc and is not replaced"):
        vtc.save(model, tmp_path)
    with pytest.raises(CheckpointError, match="is a file"):
        vtc.save(model, tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_full_disk_leaves_what_was_there(saved):
    folder, _, _ = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    model = zoo.build("llava", seed=1)
    vtc.patch(model, "random", budget=4)
    with no_file_beyond(20_000), pytest.raises(CheckpointError, match="cannot be written .*make room"):
        vtc.save(model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.slow
@pytest.mark.parametrize("exchanged", [True, False])
def test_killed_at_any_point_the_folder_is_the_old_or_the_new(exchanged, tmp_path):
    """A fork of the saving process dies before its n-th step on the file system."""
    command = [sys.executable, "-m", "tests.checkpoint.killed_saving", str(tmp_path), str(int(exchanged))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert {code for code, _ in found} <= {-9, 0} and found[-1] == [0, "new"]
    assert {state for _, state in found} == {"old", "new"}


def test_a_system_that_cannot_exchange_folders(saved, monkeypatch):
    """What a killed save left aside is in nobody's way, and comes back where nothing stands in its place."""
    folder, _, _ = saved
    monkeypatch.setattr("vtc.files.folders.exchange", lambda one, other: False)
    aside = folder.parent / f".{folder.name}.old"
    folder.rename(aside)
    assert vtc.patch_of(vtc.load(folder)).method.name == "pyramiddrop" and not aside.exists()
    aside.mkdir()
    (aside / "model.safetensors").write_bytes(b"of an older save")
    model = zoo.build("llava", seed=1)
    vtc.patch(model, "random", budget=4)
    vtc.save(model, folder)
    assert vtc.patch_of(vtc.load(folder)).method.name == "random"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_copy_that_differs_is_not_published(tmp_path, monkeypatch):
    """The instrument sees one wrong bit in one tensor."""
    from vtc.checkpoint import save_load

    real, model = save_load.load, zoo.build("llava")
    vtc.patch(model, "random", budget=4)

    def damaged(folder, **kwargs):
        copy = real(folder, **kwargs)
        weight = copy.model.vision_tower.post_layernorm.bias
        weight.data.view(torch.int32)[3] ^= 1
        return copy

    monkeypatch.setattr(save_load, "load", damaged)
    with pytest.raises(CheckpointError, match="post_layernorm.bias came back with other values"):
        vtc.save(model, tmp_path / "out", verify=True)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    vtc.save(model, tmp_path / "out", verify=True)


def test_weights_that_do_not_fit_are_refused(saved):
    """An adapter injected into the model renames its weights: loading must not leave layers at random."""
    from safetensors.torch import load_file, save_file

    folder, _, _ = saved
    weights = load_file(folder / "model.safetensors")
    key = next(k for k in weights if k.endswith("q_proj.weight"))
    weights[key.replace("q_proj", "q_proj.base_layer")] = weights.pop(key)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    rehash(folder)
    with pytest.raises(CheckpointError, match="do not fit"):
        vtc.load(folder)
