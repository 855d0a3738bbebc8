"""The model card says what was saved, and is nobody else's."""

from __future__ import annotations

import pytest
import yaml

import vtc
from tests import zoo
from vtc.checkpoint.card import OURS
from vtc.checkpoint.save_load import read_config


def saved(folder, model) -> tuple[str, dict]:
    vtc.save(model, folder)
    text = (folder / "README.md").read_text()
    _, head, _ = text.split("---\n", 2)
    return text, yaml.safe_load(head)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The hub's cache with one model in it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--somebody--a-model"
    for name, text in (("refs/main", "abc"), ("snapshots/abc/config.json", "{}")):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)


def test_it_names_method_budget_base_and_what_was_learned(tmp_path, hub):
    model = vtc.patch(zoo.build("llava"), "perceiver", budget=12, latents=16)
    model.config._name_or_path = "somebody/a-model"
    text, head = saved(tmp_path / "out", model)
    assert head["base_model"] == "somebody/a-model" and head["tags"] == ["vtc", "perceiver"]
    assert head["pipeline_tag"] == "image-text-to-text" and head["library_name"] == "transformers"
    learned = sum(p.numel() for p in model.vtc_learned.parameters())
    for fact in ("`perceiver`", '"latents": 16', "12 vision tokens", f"{learned:,} parameters", "vtc.load("):
        assert fact in text, fact
    assert read_config(tmp_path / "out")["weights_sha256"] in text
    assert "base without the method." in text and "peft_adapter" not in text


def test_it_names_the_adapter_and_compressed_weights(tmp_path):
    peft = pytest.importorskip("peft")
    model = vtc.compress(zoo.build("llava"), {"passes": ["rtn:bits=8"], "skip": ["q_proj"]}, progress=False)
    model = vtc.patch(model, "divprune", budget=0.25, share=True)
    model = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=["q_proj"]))
    model.get_base_model().config._name_or_path = str(tmp_path / "secret" / "base")
    text, head = saved(tmp_path / "out", model)
    adapted = sum(p.numel() for n, p in model.named_parameters() if "lora_" in n)
    for fact in ("0.25 of the vision tokens", "LORA of rank 3", f"{adapted:,} parameters", '"pass": "rtn"'):
        assert fact in text, fact
    assert "import vtc.weights" in text and "without the method and the adapter" in text and "vtc-vlm[train]" in text
    assert "secret" not in text and "base_model" not in head, "a folder of this machine is no model of the hub"


@pytest.mark.parametrize("name", ["runs/model", "../model", "runs/a--b", "a/b/c", "model"])
def test_a_relative_folder_is_no_model_of_the_hub(tmp_path, hub, name):
    """Which may be gone, or another one, by the time the model is saved."""
    model = vtc.patch(zoo.build("llava"), "random", budget=4)
    model.config._name_or_path = name
    text, head = saved(tmp_path / "out", model)
    assert "base_model" not in head and f"# {name.rpartition('/')[2]}, saved by vtc" in text


def test_a_folder_of_the_name_of_a_model_of_the_hub_is_the_folder(tmp_path, hub, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "somebody" / "a-model").mkdir(parents=True)
    model = vtc.patch(zoo.build("llava"), "random", budget=4)
    model.config._name_or_path = "somebody/a-model"
    assert "base_model" not in saved(tmp_path / "out", model)[1]


def test_a_card_of_somebody_else_stays_and_an_older_one_of_ours_goes(tmp_path):
    model = vtc.patch(zoo.build("llava"), "random", budget=4)
    first, _ = saved(tmp_path / "out", model)
    second, _ = saved(tmp_path / "out", vtc.patch(model, "divprune", budget=4))
    assert "`random`" in first and "`random`" not in second and "`divprune`" in second
    (tmp_path / "out" / "README.md").write_text(second.replace(OURS, "mine"))
    vtc.save(vtc.patch(model, "random", budget=4), tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == second.replace(OURS, "mine")
