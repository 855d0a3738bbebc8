"""The hash covers every file that decides what a loaded model computes: a last digit anywhere is noticed, and named."""

from __future__ import annotations

import json
import re

import peft
import pytest
import torch

import vtc
from tests import zoo
from tests.checkpoint.edits import as_first_schema
from tests.eval.tiny import tiny_llava, tiny_processor
from tests.support import logits
from vtc.checkpoint.config import CONFIG
from vtc.errors import CheckpointError

# What is saved beside a patched, compressed model with an adapter and a processor, and which of it is hashed.
HASHED = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "vtc_adapter.safetensors",
    "peft_adapter/adapter_config.json",
    "peft_adapter/adapter_model.safetensors",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
}
FREE = {"README.md", CONFIG}
ADDED = [  # files that transformers would read beside those
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "chat_template.json",
    "additional_chat_templates/short.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "tokenizer_v2.json",
    "tekken.json",
    "tiktoken.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
]
SETTINGS = {  # of config.json: part, key, another value that loads
    "rms_norm_eps": ("text_config", 2e-6),
    "layer_norm_eps": ("vision_config", 2e-5),
    "vision_feature_layer": (None, -1),
    "hidden_act": ("text_config", "gelu"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "out"
    model = vtc.compress(tiny_llava(), {"passes": ["rtn:bits=8:group=8"], "skip": ["q_proj"]}, progress=False)
    vtc.patch(model, "perceiver", budget=4)
    model = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    processor = tiny_processor()
    processor.chat_template = "{{ messages[0]['content'] }} 1"
    vtc.save(model, folder, processor)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    import shutil

    return shutil.copytree(whole, tmp_path / "out")


def test_every_file_has_its_hash(whole):
    files = {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}
    assert files - FREE == HASHED == set(json.loads((whole / CONFIG).read_text())["files"])


@pytest.mark.parametrize("name", sorted(HASHED))
def test_a_last_digit_or_a_blank_is_noticed(folder, name):
    path = folder / name
    content = path.read_bytes()
    at = max(m.start() for m in re.finditer(rb"[0-9]", content))
    for changed in (content[:at] + b"%d" % ((content[at] - 47) % 10) + content[at + 1 :], content + b"\n"):
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match=rf"{path} hashes to [0-9a-f]{{12}}… and was saved as .* vtc.save"):
            vtc.load(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{path} was saved and cannot be read"):
        vtc.load(folder)
    path.write_bytes(content)
    vtc.load(folder)


@pytest.mark.parametrize("key", SETTINGS)
def test_a_changed_setting_is_noticed(folder, key):
    part, value = SETTINGS[key]
    config = json.loads((folder / "config.json").read_text())
    (config if part is None else config[part])[key] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json hashes to"):
        vtc.load(folder)


@pytest.mark.parametrize("key", ["budget", "options", "base_model", "versions", "files"])
def test_so_is_a_change_of_the_hashes_own_file(folder, key):
    config = json.loads((folder / CONFIG).read_text())
    config[key] = {"budget": 5, "base_model": "other"}.get(key, {})
    (folder / CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"{CONFIG} was changed after it was written"):
        vtc.load(folder)


def test_the_card_and_files_of_ones_own_are_free(folder):
    (folder / "README.md").write_text("mine")
    (folder / "notes.json").write_text("mine, too")
    (folder / "my_tokenizer_notes.txt").write_text("mine, too")
    (folder / "results").mkdir()
    (folder / "results" / "tokenizer.json").write_text("of another model")
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config))  # the same without its line ends
    vtc.load(folder)


@pytest.mark.parametrize("name", ADDED)
def test_what_would_be_loaded_beside_is_refused(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    with pytest.raises(CheckpointError, match=f"{folder / name} was not saved with this model .*move it away"):
        vtc.load(folder)


def test_so_is_a_link_to_a_folder_of_templates(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "short.jinja").write_text("{}")
    (folder / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"short.jinja was not saved with this model .*move it away"):
        vtc.load(folder)


def test_a_processor_beside_a_model_that_was_saved_without_is_ones_own(tmp_path):
    model = tiny_llava()
    vtc.patch(model, "divprune", budget=4)
    vtc.save(model, tmp_path / "out")
    tiny_processor().save_pretrained(tmp_path / "out")
    vtc.load(tmp_path / "out")
    (tmp_path / "out" / "model-00002-of-00002.safetensors").write_text("{}")
    with pytest.raises(CheckpointError, match="was not saved with this model"):
        vtc.load(tmp_path / "out")


def test_settings_are_changed_in_python(folder, tmp_path):
    """What the error advises works, generation settings among it."""
    model = vtc.load(folder)
    model.generation_config.max_new_tokens = 7
    vtc.save(model, tmp_path / "again")
    assert vtc.load(tmp_path / "again").generation_config.max_new_tokens == 7


def test_a_processor_that_was_saved_earlier_stays_covered(folder):
    vtc.save(vtc.load(folder), folder)  # without one
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="tokenizer.json hashes to"):
        vtc.load(folder)


def test_a_folder_of_the_first_schema_loads_and_is_told_of(tmp_path):
    model = zoo.build("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "divprune", budget=4)
    vtc.save(model, tmp_path / "out")
    as_first_schema(tmp_path / "out")
    with pytest.warns(UserWarning, match="saved by an older vtc, which hashed the weights and not config.json"):
        loaded = vtc.load(tmp_path / "out")
    assert torch.equal(logits(loaded, prompt), logits(model, prompt))
    weights = tmp_path / "out" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="the weights hash to"):
        vtc.load(tmp_path / "out")
