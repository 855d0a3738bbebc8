"""``vtc finetune`` and ``vtc heal``: the settings of a training as options, and what users meet."""

from __future__ import annotations

import json
import sys
from dataclasses import MISSING, fields

import pytest
import typer

from tests.commands.test_cli import call
from tests.training.conftest import folder, losses  # noqa: F401  (fixtures)
from vtc.cli import app
from vtc.training.run import run
from vtc.training.settings import Settings

pytest.importorskip("accelerate")
COMMANDS = typer.main.get_command(app).commands
HEALING = {"train": "all", "distill": 1.0, "weight": 1.0}  # and a teacher is needed


@pytest.fixture
def finetune(folder, tmp_path):  # noqa: F811
    """``vtc finetune`` on the tiny model, one step; options given later count."""

    def finetune(*more, model=("--model", folder / "model"), command="finetune"):
        usual = ["--data", folder / "data.jsonl", "--method", "divprune+share", "--budget", 4]
        return call(command, *model, *usual, "--steps", 1, "--batch", 2, "--output", tmp_path / "run", *more)

    return finetune


@pytest.mark.parametrize(("command", "others"), [("finetune", {}), ("heal", HEALING)])
def test_an_option_for_each_setting(command, others):
    found = {parameter.name: parameter for parameter in COMMANDS[command].params}
    for field in fields(Settings):
        option, default = found[field.name], others.get(field.name, field.default)
        if field.name == "model" or (command, field.name) == ("heal", "teacher"):
            assert option.required
            continue
        assert default is not MISSING and str(option.default) == str(default) and not option.required, field.name
        assert "--" + field.name.replace("_", "-") in option.opts and len(option.help) > 10
    assert set(found) >= {"output", "save_every", "log_every", "workers", "overwrite", "debug"}


def test_the_command_trains_as_its_settings_say(finetune, folder, losses, tmp_path):  # noqa: F811
    given = ["--train", "all", "--rate", "0.003", "--distill", 2, "--seed", 3, "--elastic", "8,4", "--max-length", 60]
    result = finetune("--steps", 3, "--log-every", 1, "--save-every", 2, *given)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(tmp_path / "run" / "model")
    usual = {"model": str(folder / "model"), "data": str(folder / "data.jsonl"), "method": "divprune+share"}
    more = {"budget": 4, "steps": 3, "batch": 2, "train": "all", "rate": 0.003, "distill": 2.0, "seed": 3}
    run(Settings(**usual, **more, elastic="8,4", max_length=60), tmp_path / "same", 2, 1)
    assert (tmp_path / "run" / "config.json").read_text() == (tmp_path / "same" / "config.json").read_text()
    assert losses(tmp_path / "run") == losses(tmp_path / "same") and len(losses(tmp_path / "run")) == 3


def test_a_model_is_positional_or_an_option_and_so_are_plurals(finetune, folder, tmp_path):  # noqa: F811
    assert finetune().exit_code == 0
    for budget in ("--budget", "--budgets"):
        result = finetune("--methods", "divprune+share", budget, "4", model=(folder / "model",))
        assert result.exit_code == 0, result.output
    result = finetune("--budget", "25%")
    assert result.exit_code == 2 and "budget: 4 there, 0.25 asked" in result.output


def test_the_testbed_has_a_name(tmp_path):
    told = call("finetune", "scenes", "--samples", 8, "--batch", 1, "--steps", 1, "--output", tmp_path / "run")
    assert told.exit_code == 0, told.output
    weights = json.loads((tmp_path / "run" / "config.json").read_text())["weights"]
    assert len(weights) == 64, "the run knows the weights that it began with"


def test_healing_has_a_teacher(finetune, folder, tmp_path):  # noqa: F811
    missing = finetune(command="heal")
    assert missing.exit_code == 2 and "--teacher" in missing.output and not (tmp_path / "run").exists()
    result = finetune("--teacher", folder / "model", command="heal")
    assert result.exit_code == 0, result.output
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert {name: config[name] for name in HEALING} == HEALING


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--train", "some"], "none of"),
        (["--method", "divprun"], "did you mean"),
        (["--budget", "1.5"], "share in (0, 1]"),
        (["--budget", "4,8"], "'4,8' names 2 budgets"),
        (["--steps", "0"], "--steps 0 is below 1"),
        (["--rate", "-1"], "--rate -1.0 must be above 0"),
        (["--model", "./none"], "does not exist"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_mistakes_are_one_line(finetune, arguments, word):
    result = finetune(*arguments)
    assert result.exit_code == 1 and result.output.startswith("error: "), result.output
    assert word in result.output and result.output.count("\n") == 1


@pytest.mark.parametrize("arguments", [("--save-every", 0), ("--log-every", 0), ("--workers", -1), ("--steps", "two")])
def test_what_is_no_option_s_value_is_told_with_its_name(finetune, arguments):
    result = finetune(*arguments)
    assert result.exit_code == 2 and arguments[0] in result.output


def test_another_run_is_refused_with_2(finetune):
    assert finetune().exit_code == 0
    result = finetune("--seed", 1)
    assert result.exit_code == 2 and "seed: 0 there, 1 asked" in result.output and "--overwrite" in result.output
    assert finetune("--seed", 1, "--overwrite").exit_code == 0


def test_debug_shows_the_traceback(finetune):
    assert isinstance(finetune("--budget", "1.5", "--debug").exception, ValueError)


def test_ctrl_c_tells_how_to_go_on(finetune, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("vtc.training.run.fit", stop)
    monkeypatch.setattr(sys, "argv", ["vtc", "finetune", "my model", "--overwrite"])
    result = finetune()
    assert result.exit_code == 130 and "what was finished is kept" in result.output
    assert "vtc finetune 'my model'\n" in result.output


def test_without_accelerate_it_says_what_to_install(finetune, monkeypatch):
    monkeypatch.setattr("vtc.commands.training.find_spec", lambda name: None)
    result = finetune()
    assert result.exit_code == 1 and "pip install 'vtc-vlm[train]'" in result.output and result.output.count("\n") == 1
