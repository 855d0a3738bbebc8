"""``vtc compress``: a model that loads, a table, and refusals before any work."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import vtc
from tests.eval.tiny import tiny_llava, tiny_processor
from vtc.cli import app
from vtc.weights.formats import hf
from vtc.weights.pipeline import compress
from vtc.weights.planning import check as plan_check


def call(*arguments: object):
    return CliRunner().invoke(app, ["compress", *map(str, arguments)], env={"COLUMNS": "120"})


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_llava().save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


def test_rounded_without_calibration(plain, tmp_path):
    result = call(plain, "--recipe", "rtn:bits=8:group=8", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "q_proj" in result.output and "down_proj" in result.output and "bytes of weights" in result.output
    model = vtc.load(tmp_path / "out")
    told = hf.config_of(model).manifest["layers"]
    assert f"{sum(layer['bytes'] for layer in told.values()):,}" in result.output
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_fitted_to_a_benchmark_under_a_token_method(plain, tmp_path):
    calibrated = ["--calibration", "scenes:dev", "--examples", 3, "--method", "divprune", "--budget", "50%"]
    result = call(plain, "--recipe", "gptq:bits=4:group=8", *calibrated, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    model = vtc.load(tmp_path / "out")
    assert vtc.patch_of(model).method.name == "divprune" and vtc.patch_of(model).budget.value == 0.5
    errors = [layer["error"] for layer in hf.config_of(model).manifest["layers"].values()]
    assert all(0 < error < 1 for error in errors) and f"{max(errors):.2e}" in result.output
    again = call(plain, "--recipe", "rtn:bits=8:group=8", "--output", tmp_path / "out")  # vtc's own may be replaced
    assert again.exit_code == 0 and vtc.patch_of(vtc.load(tmp_path / "out")) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "int4"], "--calibration scenes:dev"),
        (["--recipe", "int5"], "int5"),
        (["--recipe", "int8", "--format", "awq"], "there are: compressed-tensors, vtc"),
        (["--recipe", "int8", "--method", "divprune"], "--method and --budget together"),
        (["--recipe", "int8", "--method", "divprun", "--budget", "4"], "divprune"),
        (["--recipe", "int4", "--calibration", "scene:dev"], "scenes"),
        (["--recipe", "int4", "--calibration", "scenes:monday"], "monday"),
        (["--recipe", "int8", "--keep-original"], "holds no .safetensors"),
    ],
)
def test_refused_before_a_model_is_loaded(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setattr("vtc.eval.asking.load.load", lambda *args: 1 / 0)
    result = call("nowhere", *arguments, "--output", tmp_path / "out")
    assert result.exit_code == 1 and message in result.output and not list(tmp_path.iterdir())


def test_a_folder_of_other_things_is_refused_and_kept(plain, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    result = call(plain, "--recipe", "int8", "--output", tmp_path)
    assert result.exit_code == 1 and "not written by vtc" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_compressed_tensors(plain, tmp_path):
    pytest.importorskip("compressed_tensors", exc_type=ImportError)
    options = ["--recipe", "rtn:bits=4:group=8", "--format", "compressed-tensors"]
    result = call(plain, *options, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert written["quant_method"] == "compressed-tensors"
    ids = torch.tensor([[5, 6, 7]])
    assert torch.isfinite(vtc.load(tmp_path / "out")(input_ids=ids).logits).all()


def test_help_teaches():
    text = call("--help").output
    assert "vtc compress ./my-vlm --recipe int4 --data questions.jsonl" in text and "GPTQ" in text


TARGETED = ["--calibration", "scenes:dev", "--examples", 6, "--batch-size", 2]
CANDIDATES = ["--candidates", "gptq:bits=2:group=8,gptq:bits=4:group=8,gptq:bits=8:group=8"]


def test_a_target_gives_each_layer_its_own(plain, tmp_path):
    result = call(plain, "--target-bits", 6.5, *TARGETED, *CANDIDATES, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["bits"] <= 6.5 and len(set(plan["chosen"].values())) > 1
    told = hf.config_of(vtc.load(tmp_path / "out")).manifest["layers"]
    assert sum(layer["bytes"] for layer in told.values()) == plan["bytes"]
    assert plan["check"]["prompts"] == 2 and plan["check"]["passes"] == "gptq:bits=2:group=8"
    told = (tmp_path / "out" / "plan.md").read_text()
    assert "| layer |" in told and "On 2 other prompts" in told and (tmp_path / "out" / "plan.png").exists()


def test_a_target_is_the_size_of_all_weights(plain, tmp_path):
    whole = sum(p.stat().st_size for p in plain.glob("*.safetensors"))
    result = call(
        plain, "--target", f"{0.8 * whole / 1000:.3f}KB", *TARGETED, *CANDIDATES, "--output", tmp_path / "out"
    )
    assert result.exit_code == 0, result.output
    tensors = vtc.load(tmp_path / "out").state_dict().values()
    assert sum(t.numel() * t.element_size() for t in tensors) <= 0.8 * whole


@pytest.mark.parametrize(
    "parts", ["include: [decoder, projector]", "skip: ['layers\\.0\\.', self_attn]\nbuckets: [1, 0]"]
)
def test_a_target_is_for_the_layers_of_the_recipe(plain, tmp_path, parts, monkeypatch):
    """All of them count, and what is tried, compared and saved is over the same."""
    checked = []
    monkeypatch.setattr(plan_check, "compress", lambda *args, **kw: checked.append(args[1]) or compress(*args, **kw))
    (tmp_path / "recipe.yaml").write_text(f"passes: ['rtn:bits=8:group=8']\n{parts}\n")
    recipe = ["--recipe", tmp_path / "recipe.yaml", "--target-bits", 6.5]
    result = call(plain, *recipe, *TARGETED, *CANDIDATES, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    manifest = hf.config_of(vtc.load(tmp_path / "out")).manifest
    assert manifest["layers"].keys() == plan["chosen"].keys()
    assert any("projector" in name for name in plan["chosen"]) == ("projector" in parts)
    assert any("self_attn" in name for name in plan["chosen"]) == ("self_attn" not in parts)
    assert sum(layer["bytes"] for layer in manifest["layers"].values()) == plan["bytes"]
    assert len(checked) == 2 and checked[0].written() == manifest["recipe"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target-bits", 6, "--recipe", "neurons:share=0.5|rtn", *TARGETED], "prune first"),
        (["--target", "2.5XB", *TARGETED], "2.5GB"),
        (["--target", "1KB", "--target-bits", 3, *TARGETED], "not both"),
        (["--target-bits", 3], "--calibration scenes:dev"),
        (["--target-bits", 0.5, *TARGETED, *CANDIDATES], "from"),
        (["--target-bits", 6, "--calibration", "scenes:dev", "--examples", 1], "more --examples"),
    ],
)
def test_targets_out_of_reach(plain, tmp_path, arguments, message):
    result = call(plain, *arguments, "--output", tmp_path / "out")
    assert result.exit_code == 1 and message in result.output and not (tmp_path / "out").exists()
