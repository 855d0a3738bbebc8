"""A tiny model and twelve conversations on disk, and a way to train on them."""

from __future__ import annotations

import json

import pytest

from tests.eval.tiny import picture, tiny_llava, tiny_processor

QUESTIONS = ("what is the color ?", "is the shape left ?", "what is the shape of the square ?")
ANSWERS = ("red", "yes no", "circle", "blue", "no")


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """``model`` and ``data.jsonl``."""
    folder = tmp_path_factory.mktemp("training")
    tiny_llava().save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    rows = []
    for n in range(12):
        picture(n).save(folder / f"{n}.png")
        said = [{"role": "user", "content": QUESTIONS[n % 3]}, {"role": "assistant", "content": ANSWERS[n % 5]}]
        rows.append({"id": f"c{n}", "image": f"{n}.png", "messages": said})
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture
def train(folder, tmp_path):
    """``train(name="run", save_every=2, log_every=1, **settings)``: the folder of the run."""
    pytest.importorskip("accelerate")
    from vtc.training.run import run
    from vtc.training.settings import Settings

    def train(name="run", save_every=2, log_every=1, **changes):
        usual = {"model": str(folder / "model"), "data": str(folder / "data.jsonl"), "method": "divprune+share"}
        usual |= {"budget": 4, "steps": 6, "batch": 2, "rate": 3e-3}
        run(Settings(**{**usual, **changes}), tmp_path / name, save_every, log_every)
        return tmp_path / name

    return train


@pytest.fixture
def losses():
    """The losses in a run's log."""

    def read(run):
        return [
            row["loss"] for line in (run / "log.jsonl").read_text().splitlines() if "loss" in (row := json.loads(line))
        ]

    return read


@pytest.fixture
def trained_models(monkeypatch):
    """The models that trainings of this test end with."""
    pytest.importorskip("accelerate")
    from vtc.training.trainer import FineTuner

    seen, train = [], FineTuner.train

    def remember(self, *args, **kwargs):
        out = train(self, *args, **kwargs)
        seen.append(self.model)
        return out

    monkeypatch.setattr(FineTuner, "train", remember)
    return seen
