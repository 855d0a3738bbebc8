"""Compressed models on disk: another process answers with the same bits, and nothing that was changed is loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vtc
from tests import zoo
from tests.eval.tiny import tiny_llava, tiny_processor
from tests.support import generate, logits
from vtc.checkpoint.save_load import CONFIG, contents_sha256
from vtc.errors import CheckpointError
from vtc.weights.formats import hf
from vtc.weights.formats.compressed_tensors import matches, patterns

ROOT = Path(__file__).parents[3]
FAMILIES = (
    "llava",
    "qwen2_5_vl",
    "idefics3",
)  # checkpoints of the first two name layers otherwise


def compressed(family: str, recipe: str, dtype: torch.dtype = torch.float32):
    model = zoo.build(family, dtype=dtype)
    return vtc.compress(model, recipe, [zoo.prompt(model, n) for n in (1, 2)], progress=False)


def elsewhere(work: Path, requests: list[dict]) -> str:
    """What a fresh process prints that loads each request's folder."""
    (work / "requests.json").write_text(json.dumps(requests))
    command = [sys.executable, str(Path(__file__).with_name("elsewhere.py")), str(work / "requests.json")]
    paths = [p for p in sys.path if p and Path(p) != ROOT]
    environment = {"PYTHONPATH": ":".join([str(ROOT), *paths]), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


def request(work: Path, name: str, prompt: dict, first: str, **more: str) -> dict:
    save_file({key: value.contiguous() for key, value in prompt.items()}, work / f"{name}.prompt")
    files = {"folder": work / name, "prompt": work / f"{name}.prompt", "out": work / f"{name}.out", **more}
    return {"import": first, **{key: str(path) for key, path in files.items()}}


def test_a_fresh_process_answers_with_the_same_bits(tmp_path):
    """After ``import vtc.weights`` plain ``from_pretrained`` does; and what it saves again is the same."""
    wanted, requests, recipes = {}, [], ("gptq:bits=4:group=8", "sparsegpt:pattern=2/4:bits=4", "gptq:bits=3:group=8")
    for family, recipe in zip(FAMILIES, recipes, strict=True):
        model = compressed(family, recipe)
        prompt = zoo.prompt(model, 2)
        wanted[family] = model, prompt, logits(model, prompt), generate(model, prompt).sequences
        vtc.save(model, tmp_path / family, verify=True)
        requests.append(request(tmp_path, family, prompt, "vtc.weights", again=tmp_path / f"{family}-again"))
    assert elsewhere(tmp_path, requests) == "True"
    for family, (model, prompt, want, tokens) in wanted.items():
        found = load_file(tmp_path / f"{family}.out")
        assert torch.equal(found["logits"], want) and torch.equal(found["tokens"], tokens)
        first, again = (load_file(tmp_path / name / "model.safetensors") for name in (family, f"{family}-again"))
        assert first.keys() == again.keys() and all(torch.equal(first[key], again[key]) for key in first)
        loaded = vtc.load(tmp_path / family)
        assert torch.equal(logits(loaded, prompt), want) and vtc.patch_of(loaded) is None
        assert hf.config_of(loaded).layers == hf.config_of(model).layers


def test_patch_and_weights_come_back_together(tmp_path):
    model = zoo.build("llava")
    prompt = zoo.prompt(model, 2)
    vtc.patch(model, "divprune", budget=4)
    vtc.compress(model, "gptq:bits=4:group=8", [prompt], progress=False)
    want = logits(model, prompt)
    vtc.save(model, tmp_path / "out", verify=True)
    loaded = vtc.load(tmp_path / "out")
    assert vtc.patch_of(loaded).method.name == "divprune" and torch.equal(logits(loaded, prompt), want)
    assert vtc.report(loaded).pictures == vtc.report(model).pictures
    told, whole = (json.loads((tmp_path / "out" / name).read_text()) for name in (CONFIG, "config.json"))
    assert told["compression"]["recipe"]["passes"][0]["pass"] == "gptq"
    assert set(told["compression"]) == {"recipe"} and whole["quantization_config"]["manifest"]["layers"]
    vtc.save(loaded, tmp_path / "again", verify=True)
    assert contents_sha256(tmp_path / "again") == contents_sha256(tmp_path / "out")


@pytest.mark.parametrize("family", [pytest.param(f, marks=pytest.mark.slow) for f in zoo.NAMES])
def test_every_family_saves_and_loads(family, tmp_path):
    model = zoo.build(family)
    vtc.compress(model, "rtn:bits=4:group=8", progress=False)
    prompt = zoo.prompt(model, 1)
    want = logits(model, prompt)
    vtc.save(model, tmp_path / "out", verify=True)
    assert torch.equal(logits(vtc.load(tmp_path / "out"), prompt), want)


def _first_layer(config: dict) -> dict:
    return next(iter(config["quantization_config"]["layers"].values()))["terms"][0]


CHANGES = {
    "another group of the same shape": lambda config: _first_layer(config).update(group=12),
    "another number of bits": lambda config: _first_layer(config).update(bits=2),
    "an unknown kind": lambda config: _first_layer(config).update(kind="spam"),
    "a layer less": lambda config: config["quantization_config"]["layers"].popitem(),
    "no compression": lambda config: config.pop("quantization_config"),
    "an error that was not": lambda config: config["quantization_config"]["manifest"].clear(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_descriptions_are_refused(change, tmp_path):
    """The same bytes under another description are other weights."""
    model = zoo.build("llava")
    vtc.compress(model, "rtn:bits=4:group=16", progress=False)
    vtc.save(model, tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="damaged"):
        vtc.load(tmp_path / "out")


def test_flipped_bits_are_refused(tmp_path):
    model = zoo.build("llava")
    vtc.compress(model, "rtn:bits=4:group=16", progress=False)
    vtc.save(model, tmp_path / "out")
    vtc.load(tmp_path / "out")  # as it is, it loads
    path = tmp_path / "out" / "model.safetensors"
    whole = path.read_bytes()
    for at in range(0, len(whole), len(whole) // 50):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :])
        with pytest.raises(CheckpointError, match="damaged"):
            vtc.load(tmp_path / "out")


def test_an_unknown_format_is_refused(tmp_path):
    model = zoo.build("llava")
    vtc.compress(model, "rtn:bits=4:group=16", progress=False)
    with pytest.raises(CheckpointError, match="no format 'gguf'; there are: compressed-tensors, vtc"):
        vtc.save(model, tmp_path / "out", format="gguf")
    plain = zoo.build("llava")
    vtc.patch(plain, "random", budget=4)
    with pytest.raises(CheckpointError, match="call vtc.compress first"):
        vtc.save(plain, tmp_path / "out", format="compressed-tensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_compressed_tensors_are_read_without_vtc(tmp_path):
    """The weights are the same bits in both formats. So are the logits in float32; in bfloat16 the reader adds a bias
    before it rounds and multiplies by another kernel, so that they differ by roundings."""
    pytest.importorskip("compressed_tensors", exc_type=ImportError)
    wanted, requests = {}, []
    for dtype in (torch.float32, torch.bfloat16):
        for family, recipe in zip(FAMILIES[:2], ("gptq:bits=4:group=8", "rtn:bits=8:group=0"), strict=True):
            model, name = compressed(family, recipe, dtype), f"{family}-{dtype}"
            prompt = zoo.prompt(model, 2)
            wanted[name] = logits(model, prompt)
            before = hf.config_of(model)
            vtc.save(model, tmp_path / name, format="compressed-tensors", verify=True)
            assert hf.config_of(model) is before and torch.equal(logits(model, prompt), wanted[name])
            requests.append(request(tmp_path, name, prompt, ""))
    assert elsewhere(tmp_path, requests) == "False"
    for name, want in wanted.items():
        found = load_file(tmp_path / f"{name}.out")["logits"]
        off = float((found.float() - want.float()).abs().max() / want.float().abs().max())
        assert off == 0 if want.dtype == torch.float32 else off < 0.02


def test_two_grids_in_one_checkpoint(tmp_path):
    """Each layer is found by its own grid, a skipped one by none; a patch comes back, too."""
    pytest.importorskip("compressed_tensors", exc_type=ImportError)
    model = zoo.build("llava")
    vtc.patch(model, "divprune", budget=4)
    recipe = {"passes": ["rtn:bits=4:group=8"], "skip": [r"layers\.1\.mlp"]}
    vtc.compress(model, recipe, progress=False)
    eight = zoo.build("llava")
    vtc.compress(eight, {"passes": ["rtn:bits=8:group=16"], "skip": ["mlp"]}, progress=False)
    layers = hf.config_of(model).layers
    for name in hf.config_of(eight).layers:
        hf.replace_module(model, name, eight.get_submodule(name))
        layers[name] = hf.config_of(eight).layers[name]
    prompt = zoo.prompt(model, 2)
    want = logits(model, prompt)
    vtc.save(model, tmp_path / "out", format="compressed-tensors", verify=True)
    written = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert sorted(g["weights"]["num_bits"] for g in written["config_groups"].values()) == [4, 8]
    loaded = vtc.load(tmp_path / "out")
    assert vtc.patch_of(loaded).method.name == "divprune" and torch.equal(logits(loaded, prompt), want)
    for name in layers:  # the forward has made them dense
        assert torch.equal(loaded.get_submodule(name).weight, model.get_submodule(name).weight)


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ("rtn:bits=3:group=8", "has 3 bits"),
        ("rtn:bits=4:group=8:symmetric=false", "asymmetric"),
        ("sparsegpt:pattern=2/4:bits=4", "pruned"),
        ("sparsegpt", "is floats"),
        ("rtn:bits=4:group=24", "no multiple of its group of 24"),
    ],
)
def test_what_compressed_tensors_cannot_express_is_refused(recipe, reason, tmp_path):
    model = compressed("llava", recipe)
    with pytest.raises(CheckpointError, match=f'{reason}.*save with format="vtc"'):
        vtc.save(model, tmp_path / "out", format="compressed-tensors")
    assert not list(tmp_path.iterdir())


def test_patterns_tell_layers_apart():
    layer = "model.language_model.layers.{}.self_attn.q_proj".format
    tower = "model.vision_tower.layers.0.self_attn.q_proj"
    assert patterns([tower, "lm_head"], [layer(0)]) == ["re:.*vision_tower.*", "re:.*lm_head.*"]
    found = patterns([layer(1)], [layer(n) for n in (0, 2, 11)])
    assert found == [r"re:(.*\.)?1\.self_attn\.q_proj$"]
    assert matches(found[0], "language_model.model.layers.1.self_attn.q_proj") and not matches(found[0], layer(21))
    with pytest.raises(CheckpointError, match="no pattern tells"):
        patterns(["a.b"], ["x.a.b"])


def test_commands_load_compressed_weights_whatever_was_imported(tmp_path, monkeypatch):
    """transformers forgets nothing within a process, so its registers are emptied here."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

    from vtc.eval.asking.load import load

    model = vtc.compress(tiny_llava(), "rtn:bits=8:group=8", progress=False)
    vtc.save(model, tmp_path / "out", tiny_processor())
    for known in (AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING):
        monkeypatch.delitem(known, "vtc")
    loaded, _ = load(str(tmp_path / "out"), device="cpu")
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
