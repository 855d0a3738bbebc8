"""What is asked of vLLM, without vLLM."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

import vtc
from tests import zoo
from tests.support import logits
from vtc.cli import app
from vtc.errors import BudgetError, CheckpointError, UnsupportedModel, VTCError
from vtc.integrations.vllm.launch import overrides
from vtc.integrations.vllm.settings import Settings
from vtc.methods import registry

SERVED = "bipartite divprune fastervlm grid hiprune holov perceiver pool random scope visionzip vispruner".split()


@pytest.mark.parametrize("name", sorted(registry))
def test_every_method_is_served_or_refused_with_a_reason(name):
    try:
        method = Settings(name).build()
    except VTCError as error:
        assert name not in SERVED and "cannot be served by vLLM: " in str(error)
    else:
        assert len(method.stages()) == 1 and not method.freezes


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ("fastv", "later layers"),
        ("cdpruner", "looks at the question"),
        ("router", "later"),
        ("frozen", "later"),
    ],
)
def test_reasons(spec, why):
    with pytest.raises(VTCError, match=why):
        Settings(spec).build()


def test_registering_imports_no_torch():
    code = "import sys, vtc.integrations.vllm; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_config_must_say_what_is_asked():
    with pytest.raises(ValueError, match="vtc serve"):
        Settings.of(SimpleNamespace())
    with pytest.raises(ValueError, match="copies"):
        Settings.of(SimpleNamespace(vtc={"copies": 3}))
    assert Settings.of(SimpleNamespace(vtc={"budget": 12})) == Settings("divprune+share", 12)


def test_models_that_are_not_served():
    with pytest.raises(UnsupportedModel, match="BlipFor is not served .* LlavaForConditionalGeneration"):
        overrides(["BlipFor"], Settings())


def test_a_saved_folder_says_what_its_server_must_know(tmp_path):
    model = vtc.patch(zoo.build("llava"), "divprune+share", 24)
    vtc.save(model, tmp_path / "served", serve="vllm")
    said = json.loads((tmp_path / "served" / "config.json").read_text())
    assert said["architectures"] == ["VtcLlavaForConditionalGeneration"]
    assert Settings.of(SimpleNamespace(**said)) == Settings("divprune+share", 24)
    again = vtc.load(tmp_path / "served")
    prompt = zoo.prompt(model, 1)
    assert torch.equal(logits(again, prompt), logits(model, prompt))
    vtc.save(again, tmp_path / "plain")
    plain = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert plain["architectures"] == ["LlavaForConditionalGeneration"], "what is not asked for is not said"
    vtc.patch(again, "fastv", 0.5)
    with pytest.raises(VTCError, match="cannot be served"):
        vtc.save(again, tmp_path / "other", serve="vllm")
    with pytest.raises(CheckpointError, match="no server 'tgi'; there are: vllm"):
        vtc.save(again, tmp_path / "other", serve="tgi")
    assert not (tmp_path / "other").exists()


def serve(folder, *options):
    return CliRunner().invoke(app, ["serve", str(folder), "--dry-run", *options])


def test_weights_that_vllm_would_not_read_are_refused(tmp_path):
    """Where they are saved for it, and where it would be started on them."""
    model = vtc.patch(zoo.build("llava"), "divprune+share", 24)
    vtc.compress(model, "rtn:bits=8")
    with pytest.raises(CheckpointError, match='format="compressed-tensors"'):
        vtc.save(model, tmp_path / "own", serve="vllm")
    vtc.save(model, tmp_path / "own")
    run = serve(tmp_path / "own")
    assert run.exit_code == 1 and "--format compressed-tensors" in run.output
    vtc.save(model, tmp_path / "read", format="compressed-tensors", serve="vllm")
    assert serve(tmp_path / "read").exit_code == 0


def test_a_learned_method_needs_what_it_learned(tmp_path):
    run = serve("scenes", "--method", "perceiver")
    assert run.exit_code == 1 and "has no vtc_adapter.safetensors" in run.output.replace("\n", "")
    model = vtc.patch(zoo.build("llava"), "perceiver:latents=32", 24)
    vtc.save(model, tmp_path / "learned", serve="vllm")
    run = serve(tmp_path / "learned")
    assert run.exit_code == 0 and "perceiver:latents=32" in run.output


def test_more_rows_than_were_learned_are_that_requests_error():
    settings = Settings("perceiver:latents=32", 24)
    assert settings.slots(196) == 24 and settings.slots(196, 32) == 32
    with pytest.raises(BudgetError, match="33 rows and perceiver:latents=32 learned 32"):
        settings.slots(196, 33)


def test_pictures_that_are_paid_by_need_are_refused(tmp_path):
    model = vtc.patch(zoo.build("llava"), "divprune", 4)
    spend = vtc.calibrate_spend(model, [zoo.prompt(model, 1, seed=n) for n in range(4)], 4)
    vtc.patch(model, vtc.methods.DivPrune(spend=spend), 4)
    with pytest.raises(VTCError, match="spends by need"):
        vtc.save(model, tmp_path / "out", serve="vllm")


def test_an_adapter_is_not_left_out(tmp_path):
    peft = pytest.importorskip("peft")
    model = vtc.patch(zoo.build("llava"), "divprune+share", 24)
    model = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"]))
    with pytest.raises(CheckpointError, match="leave out the adapter; merge_and_unload"):
        vtc.save(model, tmp_path / "out", serve="vllm")
    vtc.save(model, tmp_path / "out")
    run = serve(tmp_path / "out")
    assert run.exit_code == 1 and "--lora-modules NAME=" in run.output.replace("\n", "")
    assert serve(tmp_path / "out", "--enable-lora", "--lora-modules", f"mine={tmp_path}").exit_code == 0


def test_the_command_says_what_it_would_start():
    run = CliRunner().invoke(app, ["serve", "scenes", "--budget", "24", "--port", "8001", "--dry-run"])
    assert run.exit_code == 0 and "--port 8001" in run.output
    said = run.output[run.output.index("{") : run.output.rindex("}") + 1]
    assert json.loads(said) == {
        "architectures": ["VtcLlavaForConditionalGeneration"],
        "vtc": {"method": "divprune+share", "budget": 24},
    }
    run = CliRunner().invoke(app, ["serve", "scenes", "--method", "sparsevlm"])
    assert run.exit_code == 1 and "cannot be served" in run.output
