"""A training that was stopped leaves what one leaves that never was: the same log byte for byte, the same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import vtc
from tests.training.test_run import stop_at
from vtc.training import run as training
from vtc.training import trainer as trainers

pytest.importorskip("accelerate")
STEPS = 7  # an epoch has six: the last step is not the end of one

# Every how many steps there are lines and checkpoints, the step in which the training is stopped, the steps of the log.
STOPS = [
    (1, 2, 6, [1, 2, 3, 4, 5, 6, 7]),  # a line after the checkpoint is written again
    (3, 2, 6, [2, 3, 4, 6, 7]),  # between two lines
    (2, 3, 5, [2, 3, 4, 6, 7]),  # between a checkpoint and the next line
    (3, 3, 4, [3, 6, 7]),  # right after a checkpoint that is a line
    (10, 3, 7, [3, 6, 7]),  # no line but those of checkpoints
    (2, 7, 7, [2, 4, 6, 7]),  # before the first checkpoint: from the start
    (10, 200, 3, [7]),  # before any line
]


def left(run: Path) -> tuple[bytes, bytes]:
    assert (run / "loss.png").exists() and vtc.patch_of(vtc.load(run / "model")) is not None
    return (run / "log.jsonl").read_bytes(), (run / "trained.safetensors").read_bytes()


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("log", "save", "stop", "lines"), STOPS)
def test_stopped_in_a_step(train, monkeypatch, log, save, stop, lines):
    every = {"log_every": log, "save_every": save, "steps": STEPS}
    whole = train("whole", **every)
    assert steps(whole) == lines
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        stop_at(m, stop)
        train("stopped", **every)
    assert left(train("stopped", **every)) == left(whole)


def test_a_finished_training_is_not_trained_further(train, trained_models):
    want = left(train(steps=STEPS, save_every=4))
    for _ in range(2):
        assert left(train(steps=STEPS, save_every=4)) == want
    assert len(trained_models) == 1
    assert not list(Path(train(steps=STEPS, save_every=4)).glob("checkpoint-8"))


@pytest.mark.parametrize("name", ["end_with", "finish", "draw", "save"])
def test_stopped_after_the_last_step(train, monkeypatch, name):
    """Before the result is written, while it is, and again while that is made good."""
    whole = train("whole", steps=STEPS)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(trainers if name == "draw" else training, name, stop)
        if name == "end_with":
            shutil.copytree(whole, whole.parent / "stopped")
        train("stopped", steps=STEPS)
    assert left(train("stopped", steps=STEPS)) == left(whole)


@pytest.mark.parametrize("cut", [0, 40, -1])
def test_killed_while_a_line_was_written(train, monkeypatch, cut):
    """As of a disk that lost the end of the file: it is written anew from what the checkpoint remembers."""
    whole = train("whole", steps=STEPS, save_every=3)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        stop_at(m, 6)
        train("stopped", steps=STEPS, save_every=3)
    log = whole.parent / "stopped" / "log.jsonl"
    log.write_bytes(log.read_bytes()[:cut])
    assert left(train("stopped", steps=STEPS, save_every=3)) == left(whole)


@pytest.mark.parametrize("line", [1, 4, STEPS])
def test_killed_before_a_line_was_in_place(train, monkeypatch, line):
    whole = train("whole", steps=STEPS, save_every=3)
    put, seen = vtc.files.atomic.os.replace, []

    def stopping(source, target):
        seen.append(Path(target).name)
        if seen.count("log.jsonl") == line:
            raise KeyboardInterrupt
        put(source, target)

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr("vtc.files.atomic.os.replace", stopping)
        train("stopped", steps=STEPS, save_every=3)
    assert not list((whole.parent / "stopped").glob(".tmp-*"))
    assert left(train("stopped", steps=STEPS, save_every=3)) == left(whole)


@pytest.mark.parametrize("cut", [0, 200, -1])
def test_killed_while_a_checkpoint_was_written(train, cut):
    """Its last file is the one that says whether it is whole."""
    whole = train("whole", steps=STEPS, save_every=3)
    state = shutil.copytree(whole, whole.parent / "stopped") / f"checkpoint-{STEPS}" / "trainer_state.json"
    state.write_bytes(state.read_bytes()[:cut] if cut >= 0 else state.read_bytes().rstrip()[:cut])
    assert left(train("stopped", steps=STEPS, save_every=3)) == left(whole)
