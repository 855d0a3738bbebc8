"""Two processes under torchrun give the losses of one, and so does sharding (FSDP) on CPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FINETUNE = ("-m", "vtc.cli", "finetune")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.slow


def run(*command: str, processes: int = 1) -> str:
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    out = subprocess.run([*start, *command], capture_output=True, text=True, env=env, cwd=ROOT)
    assert out.returncode == 0, out.stderr[-3000:]
    return out.stdout


@pytest.mark.parametrize("train", ["projector", "all", "layers:auto"])
def test_two_processes_give_the_losses_of_one(folder, tmp_path, losses, train):
    usual = [
        *FINETUNE,
        str(folder / "model"),
        "--data",
        str(folder / "data.jsonl"),
        "--method",
        "divprune+share",
    ]
    usual += ["--budget", "4", "--steps", "4", "--rate", "0.003", "--log-every", "1", "--save-every", "2"]
    usual += ["--train", train] if train != "projector" else ["--distill", "2"]
    run(*usual, "--batch", "4", "--output", str(tmp_path / "one"))
    run(*usual, "--batch", "2", "--output", str(tmp_path / "two"), processes=2)
    assert json.loads((tmp_path / "two" / "config.json").read_text())["processes"] == 2
    assert len(list((tmp_path / "two" / "checkpoint-4").glob("rng_state_*.pth"))) == 2
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == 4 and two == pytest.approx(one, rel=1e-3)
    if train == "layers:auto":
        assert (tmp_path / "two" / "layers.json").read_text() == (tmp_path / "one" / "layers.json").read_text()
    if train == "all":  # the instrument tells a process that trains alone on its half
        run(*usual, "--batch", "2", "--output", str(tmp_path / "half"))
        assert losses(tmp_path / "half") != pytest.approx(one, rel=1e-2)
    (tmp_path / "two" / "checkpoint-4" / "rng_state_1.pth").unlink()  # as if the second process had been killed
    run(*usual, "--batch", "2", "--output", str(tmp_path / "two"), processes=2)
    assert losses(tmp_path / "two") == two
    run(*usual, "--batch", "2", "--output", str(tmp_path / "two"), processes=2)  # finished: no step more
    assert losses(tmp_path / "two") == two and not (tmp_path / "two" / "checkpoint-5").exists()


@pytest.mark.parametrize("method", ["bipartite", "perceiver"])
def test_sharded_processes_give_the_losses_of_one(method):
    one = json.loads(run("-m", "tests.training.fsdp", "alone", method))
    two = json.loads(run("-m", "tests.training.fsdp", "shard", method, processes=2))
    assert (one["world"], two["world"]) == (1, 2) and two["backend"] == "gloo"
    assert one["sharded"] == 0 and two["sharded"] > 50
    assert one["held"] == 1 and two["held"] == pytest.approx(0.5, abs=0.02), "each holds half of the weights"
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)


def test_the_result_answers_alike_in_a_fresh_process(folder, tmp_path):
    usual = ["--model", str(folder / "model"), "--data", str(folder / "data.jsonl"), "--budget", "4", "--steps", "4"]
    run(*FINETUNE, *usual, "--method", "divprune+share", "--rate", "0.003", "--output", str(tmp_path / "run"))
    code = (
        "import sys, vtc, torch; from tests.training.test_run import answers\n"
        "print(answers(vtc.load(sys.argv[1])).double().sum().item())"
    )
    fresh = [run("-c", code, str(tmp_path / "run" / "model")) for _ in range(2)]
    from tests.training.test_run import answers
    from vtc.checkpoint.save_load import load

    assert fresh[0] == fresh[1]
    assert float(fresh[0]) == pytest.approx(answers(load(tmp_path / "run" / "model")).double().sum().item(), rel=1e-9)


def test_sharding_that_would_not_happen_is_refused(folder, tmp_path):
    """accelerate ignores ACCELERATE_USE_FSDP on CPUs without a word."""
    command = [sys.executable, *FINETUNE, "--model", str(folder / "model"), "--data", str(folder / "data.jsonl")]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "ACCELERATE_USE_FSDP": "true"}
    out = subprocess.run(
        [*command, "--steps", "1", "--output", str(tmp_path / "run")], capture_output=True, text=True, env=env
    )
    assert out.returncode == 1 and "error: accelerate shards models on accelerators only" in out.stderr
