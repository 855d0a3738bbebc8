"""``vtc compress``: a model that loads, a table, and refusals before any work."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import vtc
from tests.eval.tiny import tiny_llava, tiny_processor
from vtc.cli import app
from vtc.weights import hf


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
        (["--recipe", "int4"], "give --calibration"),
        (["--recipe", "int5"], "int5"),
        (["--recipe", "int8", "--format", "awq"], "there are: vtc, compressed-tensors"),
        (["--recipe", "int8", "--method", "divprune"], "--method and --budget together"),
        (["--recipe", "int8", "--method", "divprun", "--budget", "4"], "divprune"),
        (["--recipe", "int4", "--calibration", "scene:dev"], "scenes"),
        (["--recipe", "int4", "--calibration", "scenes:monday"], "monday"),
    ],
)
def test_refused_before_a_model_is_loaded(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setattr("vtc.eval.load.load", lambda *args: 1 / 0)
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
    assert "vtc compress ./my-vlm --recipe int4 --calibration scenes:dev" in text and "GPTQ" in text
