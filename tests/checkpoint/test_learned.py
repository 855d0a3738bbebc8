"""What a method learned is saved beside the model, loaded strictly, and never lost silently."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import vtc
from tests import zoo
from tests.checkpoint.edits import edit, rehash
from tests.patching.test_learned_methods import LEARNING, stir
from tests.support import logits, logits_elsewhere
from vtc.checkpoint.learned import ADAPTER
from vtc.checkpoint.save_load import CONFIG
from vtc.errors import CheckpointError
from vtc.patching.api import patch_of


def trained(method="perceiver", **options):
    model = zoo.build("llava")
    vtc.patch(model, method, budget=0.4, **options)
    stir(model)
    return model, zoo.prompt(model, 1)


@pytest.fixture
def saved(tmp_path):
    model, prompt = trained()
    vtc.save(model, tmp_path / "out")
    return tmp_path / "out", prompt, logits(model, prompt)


@pytest.mark.parametrize("method", LEARNING)
def test_a_loaded_model_answers_alike(method, tmp_path):
    model, prompt = trained(method)
    vtc.save(model, tmp_path / "out", verify=True)
    copy = vtc.load(tmp_path / "out")
    assert patch_of(copy).method == patch_of(model).method
    assert torch.equal(logits(copy, prompt), logits(model, prompt))
    vtc.patch(copy, patch_of(copy).method, budget=0.3)
    patch_of(model).set_budget(0.3)
    assert torch.equal(logits(copy, prompt), logits(model, prompt))


def test_a_fresh_process_answers_alike(saved):
    folder, prompt, want = saved
    assert torch.equal(logits_elsewhere(folder, prompt), want)


def test_the_models_own_files_are_those_of_the_plain_model(saved):
    """Whoever loads the folder without vtc gets the plain model and no stray tensors."""
    from transformers import AutoModelForImageTextToText

    folder, _, _ = saved
    assert not any("vtc" in key for key in load_file(folder / "model.safetensors"))
    _, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_saving_leaves_the_model_as_it_was(tmp_path):
    model, prompt = trained()
    keys, want = list(model.state_dict()), logits(model, prompt)
    vtc.save(model, tmp_path / "out")
    assert list(model.state_dict()) == keys
    assert torch.equal(logits(model, prompt), want)
    vtc.unpatch(model)
    assert not any("vtc" in key for key in model.state_dict())


def test_several_methods_save_what_one_of_them_learned(tmp_path):
    model = zoo.build("llava")
    vtc.patch(model, ["perceiver", "fastv"], budget=0.7)
    stir(model)
    prompt = zoo.prompt(model, 1)
    vtc.save(model, tmp_path / "out")
    assert torch.equal(logits(vtc.load(tmp_path / "out"), prompt), logits(model, prompt))


def test_what_was_learned_is_replaced_whole(saved):
    """Saving another method into the folder leaves no adapter behind."""
    folder, _, _ = saved
    model = zoo.build("llava")
    vtc.patch(model, "random", budget=4)
    vtc.save(model, folder)
    assert not (folder / ADAPTER).exists()
    vtc.load(folder)


def test_a_missing_or_damaged_adapter_is_refused(saved):
    folder, _, _ = saved
    path = folder / ADAPTER
    content = path.read_bytes()
    path.write_bytes(content[:-4])
    with pytest.raises(CheckpointError, match=f"{ADAPTER} hashes to .* damaged"):
        vtc.load(folder)
    rehash(folder)
    with pytest.raises(CheckpointError, match=f"{ADAPTER} has .* bytes and its head describes"):
        vtc.load(folder)
    path.unlink()
    rehash(folder)
    with pytest.raises(CheckpointError, match="is missing, so what the method learned is lost"):
        vtc.load(folder)
    (folder / CONFIG).unlink()
    with pytest.raises(CheckpointError, match=r"was not saved by vtc\.save"):
        vtc.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("write.bias"), r"missing tensors \['write.bias'\]"),
        (lambda t: t.update(extra=torch.ones(2)), r"unexpected tensors \['extra'\]"),
        (lambda t: t.update(latents=t["latents"][:7]), r"latents has shape \(7, 64\) .* ask for \(256, 64\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(saved, change, message):
    folder, _, _ = saved
    tensors = load_file(folder / ADAPTER)
    change(tensors)
    save_file(tensors, folder / ADAPTER)
    rehash(folder)
    with pytest.raises(CheckpointError, match=message):
        vtc.load(folder)


def test_an_adapter_of_a_method_that_learns_nothing_is_refused(saved):
    folder, _, _ = saved
    edit(folder, method="divprune", options={"share": True})
    with pytest.raises(CheckpointError, match="the saved method learns nothing"):
        vtc.load(folder)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("perceiver", {"latents": 256}),
        ("perceiver", {"latents": 10**9}),
        ("perceiver", {"latents": 10**30}),
        ("perceiver", {"latents": 4096, "depth": 10**9}),
        ("act_learned", {"width": 10**9}),
        ("router", {}),
        ("combined", {"methods": [{"method": "perceiver", "options": {"latents": 10**9}}]}),
        ("combined", {"methods": [{"method": "perceiver", "options": {}}, {"method": "fastv", "options": {}}]}),
    ],
    ids=str,
)
def test_a_method_that_learns_and_no_file_of_it(tmp_path, monkeypatch, method, options):
    """Refused before it is patched in, which would make parameters of any size that the options ask for."""
    model = zoo.build("llava")
    vtc.patch(model, "divprune", budget=0.4)
    vtc.save(model, tmp_path / "out")
    edit(tmp_path / "out", method=method, options=options)
    monkeypatch.setattr("vtc.checkpoint.save_load.Patch.install", lambda *_: pytest.fail("patched in"))
    with pytest.raises(CheckpointError, match=f"{tmp_path / 'out' / ADAPTER} is missing"):
        vtc.load(tmp_path / "out")


def test_what_was_learned_on_another_base_is_refused(saved):
    """Of the same shapes, so the file would load."""
    folder, _, _ = saved
    model = zoo.build("llava", seed=1)
    vtc.patch(model, "perceiver", budget=0.4)
    vtc.save(model, folder.parent / "other")
    (folder / ADAPTER).write_bytes((folder.parent / "other" / ADAPTER).read_bytes())
    with pytest.raises(CheckpointError, match=f"{ADAPTER} hashes to .* belongs to another model"):
        vtc.load(folder)


def test_an_interrupted_save_keeps_what_was_there(saved, monkeypatch):
    folder, prompt, want = saved
    other, _ = trained(depth=1)
    monkeypatch.setattr("vtc.checkpoint.save_load.save_learned", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        vtc.save(other, folder)
    assert hasattr(other, "vtc_learned")
    assert torch.equal(logits(vtc.load(folder), prompt), want)


def test_compressed_weights_and_what_was_learned_are_saved_together(tmp_path):
    model, prompt = trained()
    learned = {name: tensor.clone() for name, tensor in model.vtc_learned.state_dict().items()}
    recipe = {"include": ["decoder", "projector"], "passes": ["rtn:bits=8"]}
    vtc.compress(model, recipe, progress=False)
    assert any("projector" in name for name in model.config.quantization_config.layers)
    assert all(torch.equal(model.vtc_learned.state_dict()[name], tensor) for name, tensor in learned.items())
    vtc.save(model, tmp_path / "out")
    assert torch.equal(logits(vtc.load(tmp_path / "out"), prompt), logits(model, prompt))
