"""``vtc compress`` on a CPU: what is not compressed keeps its dtype and its bits, and the command tells both sizes."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
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
