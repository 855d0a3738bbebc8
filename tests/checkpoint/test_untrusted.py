"""Folders that bring code or pickles: nothing of theirs runs, nothing is asked, and the error says why."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import peft
import pytest
from safetensors.torch import load_file

import vtc
from tests.checkpoint.edits import edit, rehash
from tests.checkpoint.hostile import NO_SETTINGS, READ_AS_JSON
from tests.eval.tiny import tiny_llava, tiny_processor
from vtc.checkpoint.peft import FOLDER
from vtc.errors import CheckpointError, VTCError
from vtc.eval.asking.load import load
from vtc.files.digest import file_sha256

PEFT_FILE = f"{FOLDER}/adapter_config.json"


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


class Folder:
    """A sound folder of vtc, and ways to spoil it. ``ran`` exists once anything of a stranger's ran."""

    def __init__(self, path: Path, ran: Path):
        self.path, self.ran = path, ran

    def set(self, file: str, **changes) -> None:
        path = self.path / file
        told = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**told, **changes}))

    def code(self, file: str, more: str = "") -> None:
        (self.path / file).parent.mkdir(exist_ok=True)
        (self.path / file).write_text(f"open({str(self.ran)!r}, 'w').close()\n{more}")

    def trap(self, file: str) -> None:
        (self.path / file).write_bytes(pickle.dumps(Trap(self.ran)))

    def remove(self, file: str) -> None:
        (self.path / file).unlink()


def image_processor(folder: Folder) -> None:
    told = json.loads((folder.path / "processor_config.json").read_text())["image_processor"]
    told |= {"auto_map": {"AutoImageProcessor": "own.P"}, "image_processor_type": "P"}
    folder.set("processor_config.json", image_processor=told)


OWN = {"AutoConfig": "own.Config", "AutoModelForImageTextToText": "own.Model", "AutoProcessor": "own.P"}
# What is done to the folder, and what the error must say (None: it loads, and runs nothing).
CODE = {
    "a model of its own": (
        lambda f: f.set("config.json", model_type="unheard_of", auto_map=OWN),
        "never runs the code",
    ),
    "a known model's class": (lambda f: f.set("config.json", auto_map=OWN), None),
    "a processor": (
        lambda f: f.set("processor_config.json", processor_class="P", auto_map=OWN),
        "never runs the code",
    ),
    "an image processor": (image_processor, "never runs the code"),
    "a tokenizer": (
        lambda f: f.set("tokenizer_config.json", tokenizer_class="P", auto_map={"AutoTokenizer": ["own.P", "own.P"]}),
        None,
    ),
    "a generate of its own": (lambda f: f.code("custom_generate/generate.py", "def generate(model): ..."), None),
    "a kernel": (
        lambda f: f.set("config.json", attn_implementation="someone/kernel"),
        "takes attn_implementation from",
    ),
    "a kernel inside": (
        lambda f: f.set("config.json", vision_config={"_attn_implementation": "someone/kernel"}),
        "takes _attn_implementation from",
    ),
}
PICKLES = {
    "pytorch_model.bin": ["pytorch_model.bin"],
    "a sharded one": ["pytorch_model.bin.index.json", "pytorch_model-00001-of-00001.bin"],
    "model.pt": ["model.pt"],
    "model.ckpt": ["model.ckpt"],
    "training_args.bin": ["training_args.bin"],
}


@pytest.fixture
def plain(tmp_path):
    tiny_llava().save_pretrained(tmp_path / "model")
    tiny_processor().save_pretrained(tmp_path / "model")
    folder = Folder(tmp_path / "model", tmp_path / "ran")
    folder.code("own.py")
    return folder


@pytest.fixture
def saved(tmp_path):
    model = peft.get_peft_model(tiny_llava(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    vtc.save(model, tmp_path / "saved", tiny_processor())
    folder = Folder(tmp_path / "saved", tmp_path / "ran")
    folder.code("own.py")
    return folder


@pytest.fixture(autouse=True)
def no_answer(monkeypatch):
    """Who asks on a terminal fails."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to trust the code"))
    monkeypatch.setattr(sys, "stdin", None)


def tried(call, folder: Folder, message: str | None) -> None:
    if message is None:
        call()
    else:
        with pytest.raises(VTCError, match=message):
            call()
    assert not folder.ran.exists()


@pytest.mark.parametrize("name", CODE)
def test_code_is_not_run(plain, saved, name):
    spoil, message = CODE[name]
    spoil(plain)
    tried(lambda: load(str(plain.path), "auto", "cpu"), plain, message)
    spoil(saved)
    rehash(saved.path)  # a hostile folder's hashes agree
    in_model = message if "process" not in name else None
    tried(lambda: vtc.load(saved.path), saved, in_model)


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_are_refused_before_they_are_opened(plain, name):
    plain.remove("model.safetensors")
    for file in PICKLES[name]:
        plain.trap(file)
    tried(lambda: load(str(plain.path), "auto", "cpu"), plain, "where safetensors belong: a pickle can run any code")


def test_a_pickle_beside_safetensors_is_left_alone(plain, saved):
    plain.trap("pytorch_model.bin")
    tried(lambda: load(str(plain.path), "auto", "cpu"), plain, None)
    saved.trap("pytorch_model.bin")
    tried(lambda: vtc.load(saved.path, use_safetensors=False), saved, None)


@pytest.mark.parametrize("how", ["config", "index", "adapter"])
def test_pickles_that_a_json_file_names_are_refused(plain, how):
    plain.trap("adapter_model.bin")
    if how == "config":
        plain.set("config.json", transformers_weights="adapter_model.bin")
    elif how == "index":
        plain.set("model.safetensors.index.json", metadata={}, weight_map=dict.fromkeys("ab", "adapter_model.bin"))
        plain.remove("model.safetensors")
    else:
        plain.set("adapter_config.json", peft_type="LORA", base_model_name_or_path=str(plain.path), r=2)
    tried(lambda: load(str(plain.path), "auto", "cpu"), plain, "adapter_model.bin where safetensors belong")


@pytest.mark.parametrize("name", READ_AS_JSON)
def test_json_that_holds_no_settings(plain, saved, name):
    """Of a plain folder and of one of vtc whose hashes agree, for the commands and for ``vtc.load``."""
    hashes = json.loads((saved.path / "vtc_config.json").read_text())["files"]
    for text in NO_SETTINGS.values():
        for folder in (plain, saved):
            (folder.path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
            if folder is saved:
                edit(saved.path, files=hashes | {name: file_sha256(saved.path / name)})
                with pytest.raises(CheckpointError, match=str(saved.path / name)):
                    vtc.load(saved.path)
            with pytest.raises(VTCError, match=str(folder.path / name)):
                load(str(folder.path), "auto", "cpu", learned=True)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "processor_config.json", "tokenizer_config.json"])
def test_the_hashes_are_asked_before_a_processor_is_made(saved, name):
    (saved.path / name).write_text("{}")
    with pytest.raises(VTCError, match=f"{saved.path / name} hashes to"):
        load(str(saved.path), "auto", "cpu", learned=True)


@pytest.mark.parametrize(
    "setting",
    [
        {"megatron_config": {"a": 1}, "megatron_core": "own"},
        {"corda_config": {"cache_file": "adapter_model.bin"}},
        {"init_lora_weights": "loftq"},
        {"peft_type": "PROMPT_TUNING", "tokenizer_name_or_path": "own"},
        {"peft_type": "XLORA", "adapters": {"a": "elsewhere"}},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_an_adapter_reaches_for_nothing_outside(saved, setting):
    saved.set(PEFT_FILE, **setting)
    rehash(saved.path)
    tried(lambda: vtc.load(saved.path), saved, "by which PEFT reads or imports")


def test_an_adapter_that_began_from_something_is_saved_without_it(tmp_path):
    """How it began is no part of it; what would not load is refused when it is saved."""
    model = peft.get_peft_model(tiny_llava(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    config = model.peft_config["default"]
    config.init_lora_weights, config.corda_config = "pissa", peft.tuners.lora.config.CordaConfig()
    vtc.save(model, tmp_path / "out")
    assert load_file(tmp_path / "out" / FOLDER / "adapter_model.safetensors") and vtc.load(tmp_path / "out")
    config.megatron_config = {"a": 1}
    with pytest.raises(CheckpointError, match="the adapter sets megatron_config"):
        vtc.save(model, tmp_path / "out")
