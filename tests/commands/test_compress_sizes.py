"""``vtc compress`` on a CPU: what is not compressed keeps its dtype and its bits, and the command tells both sizes."""

from __future__ import annotations

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import vtc
from tests.eval.tiny import tiny_llava, tiny_processor
from vtc.cli import app

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
RECIPES = {  # what a compressed folder may hold: rounded, factorised, pruned and smaller matrices
    "rtn:bits=8:group=8": [],
    "svd:keep=0.5": [],
    "neurons:share=0.5|rtn:bits=4:group=8": ["--calibration", "scenes:dev", "--examples", 3, "--batch-size", 1],
    "magnitude:sparsity=0.5": [],
}


def call(*arguments: object):
    return CliRunner().invoke(app, ["compress", *map(str, arguments)], env={"COLUMNS": "120"})


def tensors(folder):
    return {name: t for path in folder.glob("model*.safetensors") for name, t in load_file(path).items()}


@pytest.fixture(scope="module", params=HALVES)
def half(request, tmp_path_factory):
    """A sharded checkpoint in half precision, whose output layer is tied to the embedding."""
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny_llava()
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = True
    model.tie_weights()
    model.to(HALVES[request.param]).save_pretrained(folder, max_shard_size="60KB")
    tiny_processor().save_pretrained(folder)
    assert len(list(folder.glob("model*.safetensors"))) > 1
    return folder, HALVES[request.param]


@pytest.mark.parametrize("recipe", RECIPES)
def test_stored_dtypes_stay(half, tmp_path, recipe):
    folder, dtype = half
    result = call(folder, "--recipe", recipe, *RECIPES[recipe], "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    before, after = tensors(folder), tensors(tmp_path / "out")
    untouched = [name for name in before if name in after and before[name].shape == after[name].shape]
    assert len(untouched) > 20 and all(after[name].dtype == before[name].dtype for name in untouched)
    assert all(torch.equal(after[name], before[name]) for name in untouched if "vision" in name or "embed" in name)
    assert {t.dtype for t in after.values() if t.is_floating_point()} == {dtype}  # scales and factors, too
    assert next(vtc.load(tmp_path / "out").parameters()).dtype == dtype


LANGUAGE, TOWER, BOTH = "language_model", "vision_tower", ""
# Which tensors are cast to what, what config.json says, and the warning: of the files' dtypes and of the loaded ones.
MIXED = {
    "a tower of more": (LANGUAGE, torch.float16, "float32", "float16 and float32, .* in float32,"),
    "a tower of more, config of none": (LANGUAGE, torch.float16, None, "float16 and float32, .* in float16,"),
    "a tower of more, config of less": (LANGUAGE, torch.float16, "float16", "float16 and float32, .* in float16,"),
    "a tower of less": (TOWER, torch.bfloat16, "float32", "bfloat16 and float32, .* in float32,"),
    "a config of less": (BOTH, torch.float32, "float16", "float32, and transformers loads them in float16,"),
    "a config of more": (BOTH, torch.float16, "float32", "float16, and transformers loads them in float32,"),
    "one dtype": (BOTH, torch.float16, "float16", None),
}


@pytest.mark.parametrize("name", MIXED)
def test_dtypes_that_do_not_stay_are_told(tmp_path, name):
    part, dtype, said, warning = MIXED[name]
    folder, out = tmp_path / "model", tmp_path / "out"
    tiny_llava().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    save_file(
        {key: t.to(dtype) if part in key else t for key, t in tensors(folder).items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": said}))
    result = call(folder, "--recipe", "rtn:bits=8:group=8", "--output", out)
    assert result.exit_code == 0, result.output
    if warning is None:
        assert "holds tensors in" not in result.output
    else:
        assert re.search(f"warning: {folder} holds tensors in {warning}", " ".join(result.output.split()))
        saved = {str(t.dtype) for t in tensors(out).values() if t.is_floating_point()}
        assert saved == {"torch." + warning.rstrip(",").rpartition(" ")[2]}
    chosen = call(folder, "--recipe", "rtn:bits=8:group=8", "--dtype", "float32", "--output", out)
    assert chosen.exit_code == 0 and "holds tensors in" not in chosen.output
    kept = {key: t for key, t in tensors(folder).items() if "vision" in key and key in tensors(out)}
    assert kept and all(torch.equal(tensors(out)[key], t.float()) for key, t in kept.items())


def test_both_sizes_are_told(half, tmp_path):
    folder, _ = half
    result = call(folder, "--recipe", "rtn:bits=4:group=32", "--output", tmp_path / "out")
    before, after = (sum(p.stat().st_size for p in f.glob("model*")) for f in (folder, tmp_path / "out"))
    before -= (folder / "model.safetensors.index.json").stat().st_size
    assert after < before and f"{after:,} bytes of weights, {100 * after / before:.1f} % of the {before:,}" in "".join(
        result.output.splitlines()
    )
    assert "not smaller" not in result.output


def test_a_folder_that_did_not_get_smaller_warns(half, tmp_path):
    folder, _ = half
    result = call(folder, "--recipe", "rtn:bits=8:group=8", "--dtype", "float32", "--output", tmp_path / "out")
    assert result.exit_code == 0 and "warning: this is not smaller than the original" in result.stderr
    assert next(vtc.load(tmp_path / "out").parameters()).dtype == torch.float32
