"""Adapters of PEFT are saved beside the model with vtc's part, load strictly, and belong to one base."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vtc
from tests import zoo
from tests.checkpoint.edits import rehash
from tests.patching.test_learned_methods import stir
from tests.support import logits, logits_elsewhere
from vtc.checkpoint.peft import FOLDER, TENSORS
from vtc.errors import CheckpointError
from vtc.patching.api import patch_of

peft = pytest.importorskip("peft")
TARGETS = {"target_modules": ["q_proj", "up_proj"], "r": 2}


def adapted(model, autocast_adapter_dtype=True, **options):
    """``model`` with an adapter whose every part does something."""
    config = peft.LoraConfig(**{**TARGETS, **options})
    made = peft.get_peft_model(model, config, autocast_adapter_dtype=autocast_adapter_dtype)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return made.eval()


def patched_then_adapted():
    model = vtc.patch(zoo.build("llava"), "perceiver", budget=0.4)
    stir(model)
    return adapted(model)


def adapted_then_patched():
    model = adapted(zoo.build("llava"))
    vtc.patch(model, "perceiver", budget=0.4)
    stir(model.get_base_model())
    return model


ORDERS = pytest.mark.parametrize("make", [patched_then_adapted, adapted_then_patched])


def inner_prompt(model):
    return zoo.prompt(model.get_base_model(), 1)


@pytest.fixture
def saved(tmp_path):
    model = patched_then_adapted()
    vtc.save(model, tmp_path / "out")
    return tmp_path / "out", model


@ORDERS
def test_a_loaded_model_answers_alike(make, tmp_path):
    model = make()
    prompt, keys = inner_prompt(model), list(model.state_dict())
    want = logits(model, prompt)
    with model.disable_adapter():
        assert not torch.allclose(logits(model, prompt), want, atol=1e-3), "the adapter does something"
    vtc.save(model, tmp_path / "out", verify=True)
    assert list(model.state_dict()) == keys and torch.equal(logits(model, prompt), want), "saving changes nothing"
    copy = vtc.load(tmp_path / "out")
    assert isinstance(copy, peft.PeftModel) and patch_of(copy).method == patch_of(model).method
    assert torch.equal(logits(copy, prompt), want)
    assert torch.equal(logits(copy.unload(), prompt), logits(model.unload(), prompt)), "the base is as it was"


@pytest.mark.slow
def test_a_fresh_process_answers_alike(saved):
    folder, model = saved
    prompt, want = inner_prompt(model), logits(model, inner_prompt(model))
    assert torch.equal(logits_elsewhere(folder, prompt), want)


def test_peft_and_transformers_read_their_parts_without_vtc(saved):
    from transformers import AutoModelForImageTextToText

    folder, model = saved
    plain, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    prompt = inner_prompt(model)
    with vtc.patched(plain, patch_of(model).method, budget=0.4):
        plain.vtc_learned.load_state_dict(patch_of(model).method.module.state_dict())
        read = peft.PeftModel.from_pretrained(plain, folder, subfolder=FOLDER)
        assert torch.equal(logits(read, prompt), logits(model, prompt))


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"modules_to_save": ["multi_modal_projector"]},
        {"use_dora": True},
        {"init_lora_weights": "pissa"},
        {"bias": "all"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_kinds_of_adapters(options, tmp_path):
    """ "all-linear" reaches what the method learns, PiSSA moves part of the base into the adapter."""
    model = vtc.patch(zoo.build("llava"), "perceiver", budget=0.4)
    stir(model)
    model = adapted(model, **options)
    vtc.save(model, tmp_path / "out")
    prompt = inner_prompt(model)
    assert torch.equal(logits(vtc.load(tmp_path / "out"), prompt), logits(model, prompt))


@pytest.mark.parametrize("full", [True, False])
def test_an_adapter_alone_is_saved_in_its_own_precision(full, tmp_path):
    """PEFT keeps adapters of a model in half precision in float32, unless told otherwise."""
    from transformers import AutoModelForImageTextToText

    zoo.build("llava").save_pretrained(tmp_path / "base")
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "base", dtype=torch.bfloat16)
    model = adapted(base, autocast_adapter_dtype=full)
    vtc.save(model, tmp_path / "out")
    copy = vtc.load(tmp_path / "out")
    kinds = {p.dtype for n, p in copy.named_parameters() if "lora_" in n}
    assert kinds == {torch.float32 if full else torch.bfloat16}
    prompt = zoo.prompt(base, 1)
    assert torch.equal(logits(copy, prompt), logits(model, prompt))


def test_compressed_weights_and_adapters_are_saved_together(tmp_path):
    """Adapters go to layers that stayed plain."""
    model = vtc.compress(zoo.build("llava"), {"passes": ["rtn:bits=8"], "skip": ["q_proj"]}, progress=False)
    model = adapted(vtc.patch(model, "divprune", budget=4, share=True), target_modules=["q_proj"])
    vtc.save(model, tmp_path / "out", verify=True)
    copy, prompt = vtc.load(tmp_path / "out"), inner_prompt(model)
    assert torch.equal(logits(copy, prompt), logits(model, prompt))
    assert copy.get_base_model().config.quantization_config.layers


def test_saving_without_an_adapter_leaves_none_behind(saved):
    folder, _ = saved
    vtc.save(vtc.patch(zoo.build("llava"), "random", budget=4), folder)
    assert not (folder / FOLDER).exists() and not isinstance(vtc.load(folder), peft.PeftModel)


def test_an_adapter_of_another_base_is_refused(saved, tmp_path):
    folder, _ = saved
    model = vtc.patch(zoo.build("llava", seed=1), "perceiver", budget=0.4)
    vtc.save(model, tmp_path / "plain")
    shutil.copytree(folder / FOLDER, tmp_path / "plain" / FOLDER)
    with pytest.raises(CheckpointError, match="belongs to another checkpoint"):
        vtc.load(tmp_path / "plain")
    vtc.save(adapted(model, r=3), tmp_path / "other")
    shutil.rmtree(folder / FOLDER)
    shutil.copytree(tmp_path / "other" / FOLDER, folder / FOLDER)
    with pytest.raises(CheckpointError, match="adapter_config.json hashes to .* belongs to another model"):
        vtc.load(folder)


def change(folder: Path, edit) -> None:
    """Edit the adapter's tensors, and let the folder's config agree: what is left to find fault is the loader."""
    tensors = load_file(folder / FOLDER / TENSORS)
    edit(tensors)
    save_file(tensors, folder / FOLDER / TENSORS)
    rehash(folder)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(next(iter(t))), r"missing tensors \['base_model\.model\..*lora_A.weight'\]"),
        (lambda t: t.update(extra=torch.ones(2)), r"unexpected tensors \['extra'\]"),
        (lambda t: t.update({n: v[:1] for n, v in t.items() if "lora_A" in n}), r"has shape \(1, \d+\) .* ask for \(2"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(saved, edit, message):
    folder, _ = saved
    change(folder, edit)
    with pytest.raises(CheckpointError, match=message):
        vtc.load(folder)


def test_a_folder_of_which_any_file_is_missing_or_cut_off_is_refused(saved, tmp_path):
    folder, model = saved
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.name != "README.md"]
    assert len(files) >= 6
    for file in files:
        for content in (None, (folder / file).read_bytes()[:-5]):
            shutil.copytree(folder, tmp_path / "half")
            (tmp_path / "half" / file).unlink() if content is None else (tmp_path / "half" / file).write_bytes(content)
            with pytest.raises(CheckpointError):
                vtc.load(tmp_path / "half")
            shutil.rmtree(tmp_path / "half")
    vtc.load(folder)


def test_what_would_not_come_back_is_refused(tmp_path):
    model = patched_then_adapted()
    with pytest.raises(CheckpointError, match="give the PeftModel around it"):
        vtc.save(model.get_base_model(), tmp_path / "out")
    model.merge_adapter()
    with pytest.raises(CheckpointError, match="merged or disabled"):
        vtc.save(model, tmp_path / "out")
    model.unmerge_adapter()
    model.add_adapter("second", peft.LoraConfig(**TARGETS))
    with pytest.raises(CheckpointError, match="carries default, second: one adapter"):
        vtc.save(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    whole = model.merge_and_unload()
    vtc.save(whole, tmp_path / "out")
    assert not isinstance(vtc.load(tmp_path / "out"), peft.PeftModel)


def test_the_readers_of_plain_models_refuse_a_folder_with_an_adapter(saved):
    """Without its adapter the base would stand for the trained model."""
    from vtc.errors import VTCError
    from vtc.eval.asking.load import load

    with pytest.raises(VTCError, match="holds what a method or an adapter learned"):
        load(str(saved[0]))


def test_commands_that_patch_get_the_adapter_without_a_patch(tmp_path):
    """As of any folder: they bring their own."""
    from tests.eval.tiny import tiny_llava, tiny_processor
    from vtc.eval.asking.load import load

    vtc.save(vtc.patch(adapted(tiny_llava()), "divprune", budget=4), tmp_path / "out", tiny_processor())
    model, _ = load(str(tmp_path / "out"), learned=True)
    assert isinstance(model, peft.PeftModel) and patch_of(model) is None
