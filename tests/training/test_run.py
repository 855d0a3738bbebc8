"""One training from settings to a saved model: what it leaves, going on, and what it refuses."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import vtc
from tests.eval.tiny import picture, tiny_processor
from vtc.errors import BudgetError, CheckpointError, DataError, RunRefused, UnsupportedModel, VTCError
from vtc.training.collate import Collator
from vtc.training.conversations import Conversation, Turn
from vtc.training.run import read_answers, read_layers
from vtc.training.trainer import FineTuner, NotFinite

pytest.importorskip("accelerate")


@torch.no_grad()
def answers(model):
    """Logits of a question about a picture."""
    batch = Collator(tiny_processor())([Conversation("x", (Turn("what is the color ?", "red"),), (picture(50),))])
    return model.eval()(**{k: v for k, v in batch.items() if k not in ("labels", "sample_ids")}).logits


@pytest.mark.parametrize(("kind", "method"), [("projector", "divprune+share"), ("compressor", "perceiver:latents=8")])
def test_the_result_loads_with_the_answers_of_the_trained_model(kind, method, train, losses, trained_models, folder):
    run = train(train=kind, method=method, steps=12, rate=1e-2, save_every=12)
    (model,) = trained_models
    found = vtc.load(run / "model")
    assert torch.equal(answers(found), answers(model))
    assert vtc.patch_of(found).budget.value == 4
    untrained = vtc.patch(
        _plain(folder), method.split(":")[0].split("+")[0], budget=4, **({"share": True} if "+" in method else {})
    )
    assert not torch.allclose(answers(found), answers(untrained), atol=1e-3), "it has learned something"
    got = losses(run)
    assert len(got) == 12 and sum(got[-4:]) < sum(got[:4])
    assert (run / "loss.png").stat().st_size > 1000


def _plain(folder):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder / "model")


@pytest.mark.parametrize("method", ["perceiver:latents=8", None])
def test_adapters_are_saved_with_the_result(method, train, trained_models, tmp_path):
    pytest.importorskip("peft")
    run = train(train="lora", rank=4, method=method, rate=1e-2)
    (model,) = trained_models
    found = vtc.load(run / "model")
    assert torch.equal(answers(found), answers(model))
    names = load_file(run / "model" / "peft_adapter" / "adapter_model.safetensors")
    assert names and not any("vision_tower" in name or "vtc_learned" in name for name in names)
    with pytest.raises(VTCError, match=r"has an adapter; merge_and_unload\(\)"):
        train("again", model=str(run / "model"), steps=1)


def stop_at(monkeypatch, step: int) -> None:
    """Let the process be stopped in that step."""
    compute, calls = FineTuner.compute_loss, []

    def stopping(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt
        return compute(self, *args, **kwargs)

    monkeypatch.setattr(FineTuner, "compute_loss", stopping)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"distill": 2.0}, marks=pytest.mark.slow, id="distilled"),
        pytest.param({"train": "lora", "rank": 4}, marks=pytest.mark.slow, id="lora"),
        pytest.param({"train": "compressor", "method": "perceiver:latents=8", "elastic": "8,4,2"}, id="elastic"),
        pytest.param({"train": "all", "bf16": True}, marks=pytest.mark.slow, id="bf16"),
    ],
)
def test_a_stopped_training_goes_on_exactly(train, losses, monkeypatch, settings):
    if settings.get("train") == "lora":
        pytest.importorskip("peft")
    whole = train("whole", **settings)
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        stop_at(m, 6)
        train("stopped", **settings)
    stopped = train("stopped", **settings)
    assert losses(stopped) == losses(whole) and len(losses(whole)) == 6
    assert (stopped / "trained.safetensors").read_bytes() == (whole / "trained.safetensors").read_bytes()


def test_a_half_written_checkpoint_is_passed_over(train, losses):
    run = train(steps=6)
    want = losses(run), (run / "trained.safetensors").read_bytes()
    (run / "checkpoint-6" / "trainer_state.json").unlink()
    (run / "checkpoint-6" / "trained.safetensors").write_bytes(b"cut off")
    again = train(steps=6)
    assert (losses(again), (again / "trained.safetensors").read_bytes()) == want


def test_a_damaged_checkpoint_is_refused(train):
    run = train(steps=2)
    path = run / "checkpoint-2" / "trained.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="cannot be read.*delete"):
        train(steps=2)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rate": 1e-2}, "rate: 0.003 there, 0.01 asked"),
        ({"method": "grid"}, "method: 'divprune\\+share' there"),
        ({"budget": 5}, "budget: 4 there, 5 asked"),
        ({"train": "all"}, "train: 'projector' there"),
        ({"seed": 1}, "seed"),
    ],
)
def test_other_settings_are_refused_by_name(train, changes, named):
    train(steps=1)
    with pytest.raises(RunRefused, match=named):
        train(steps=1, **changes)


def test_starting_over_leaves_foreign_files(train, losses, folder, tmp_path):
    from vtc.training.run import run
    from vtc.training.settings import Settings

    first = losses(train(steps=1))
    (tmp_path / "run" / "mine.txt").write_text("mine")
    usual = {"model": str(folder / "model"), "data": str(folder / "data.jsonl"), "method": "divprune+share"}
    run(Settings(**usual, budget=4, steps=2, batch=2, seed=3), tmp_path / "run", 2, 1, overwrite=True)
    again = losses(tmp_path / "run")
    assert len(again) == 2 and again[0] != first[0] and (tmp_path / "run" / "mine.txt").exists()
    assert not (tmp_path / "run" / "checkpoint-1").exists()


def test_other_data_and_weights_under_the_same_name_are_refused(train, folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "copy")
    here = {"data": str(tmp_path / "copy" / "data.jsonl"), "model": str(tmp_path / "copy" / "model"), "steps": 1}
    train(**here)
    data = tmp_path / "copy" / "data.jsonl"
    data.write_text(data.read_text().replace("red", "blue"))
    with pytest.raises(RunRefused, match="data: "):
        train(**here)


def test_a_loss_that_is_not_finite_stops_with_step_and_samples(train):
    with pytest.raises(
        NotFinite, match=r"the loss is nan at step \d+, samples c\d+, c\d+; .* last checkpoint is sound"
    ):
        train(rate=1e30, warmup=0.0, train="all", save_every=100)


def test_the_model_teaches_itself(train, losses):
    """ReducingMask pictures: the divergence of the student from itself is nothing. A quarter of them: it is not."""
    pytest.importorskip("accelerate")
    assert losses(train("whole", budget=1.0, distill=2.0, weight=1.0, steps=1)) == [0]
    assert losses(train("less", budget=4, distill=2.0, weight=1.0, steps=1))[0] > 1e-3


@pytest.mark.slow
def test_another_model_teaches_by_logits(train, losses, folder):
    own = losses(train("own", distill=2.0, steps=1))
    other = losses(train("other", distill=2.0, steps=1, teacher=str(folder / "model")))
    assert other == pytest.approx(own, rel=1e-6)


@pytest.mark.slow
def test_another_model_teaches_by_its_answers(train, folder):
    run = train(teacher=str(folder / "model"), steps=1)
    told = dict(json.loads(line) for line in (run / "answers.jsonl").read_text().splitlines())
    assert set(told) == {f"c{n}" for n in range(12)}
    from vtc.eval.asking.generate import Answerer
    from vtc.eval.asking.load import load

    model, processor = load(str(folder / "model"), "float32", "cpu")
    asks = Answerer(model, processor, "USER: {question} ASSISTANT:", max_new_tokens=64)
    from PIL import Image

    from vtc.eval.asking.generate import Asked

    prompt = asks.prompt("what is the color ?", 1)
    want = asks.answers(asks.inputs([Asked(None, [Image.open(folder / "0.png")], prompt)]))
    assert told["c0"] == want


@pytest.mark.slow
def test_forwards_that_are_accumulated_are_one_step(train, losses):
    whole = losses(train("whole", batch=4, steps=3, distill=1.0))
    parts = losses(train("parts", batch=2, accumulate=2, steps=3, distill=1.0))
    assert parts == pytest.approx(whole, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["projector", "all"])
def test_gradient_checkpointing_gives_the_same_losses(train, losses, kind):
    whole = losses(train("whole", steps=3, train=kind, distill=1.0))
    saved = losses(train("saved", steps=3, train=kind, distill=1.0, gradient_checkpointing=True))
    assert saved == pytest.approx(whole, rel=1e-4)


def test_layers_that_a_sensitivity_pass_finds(train, folder):
    run = train(train="layers:auto", steps=3, rate=1e-2)
    chosen = json.loads((run / "layers.json").read_text())["layers"]
    assert 0 < len(chosen) < 4
    before = _plain(folder).state_dict()
    after = vtc.load(run / "model").state_dict()
    moved = {n for n in before if not torch.equal(before[n], after[n])}
    assert {int(n.split("layers.")[1].split(".")[0]) for n in moved} == set(chosen)
    assert all("language_model.layers" in n for n in moved)


def test_conversations_without_a_picture(train, folder, tmp_path):
    rows = (folder / "data.jsonl").read_text().splitlines()
    said = json.loads(rows[0])["messages"]
    path = folder / "text.jsonl"
    path.write_text("\n".join([rows[0], json.dumps({"id": "text", "messages": said})]))
    with pytest.raises(DataError, match="sample text has no picture and teaches a projector nothing"):
        train(data=str(path), steps=1)
    assert (train("all", data=str(path), steps=2, batch=1, train="all") / "model").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"max_length": 10}, DataError, r"sample c\d+: 2\d tokens, above max_length 10"),
        ({"method": "perceiver:latents=3", "train": "compressor"}, BudgetError, "3 latents"),
        ({"train": "compressor"}, UnsupportedModel, "no parameters of its own"),
        ({"train": "some"}, VTCError, "none of"),
        ({"data": "nowhere.jsonl"}, DataError, "cannot be read"),
        ({"steps": 0}, VTCError, "--steps 0"),
        ({"rate": -1.0}, VTCError, "--rate"),
        ({"distill": 0.0}, VTCError, "--distill"),
        ({"weight": 0.0}, VTCError, "--weight"),
        ({"elastic": "8", "method": "perceiver:latents=4", "train": "compressor"}, BudgetError, "4 latents"),
        ({"elastic": "8", "method": None, "train": "all"}, VTCError, "needs? a patch"),
    ],
)
def test_what_cannot_be_trained_is_refused(train, changes, error, message):
    with pytest.raises(error, match=message):
        train(**{"steps": 1, **changes})


def test_two_trainings_in_one_folder_are_refused(train, tmp_path):

    from vtc.eval.results.journal import lock

    (tmp_path / "run").mkdir()
    held = lock(tmp_path / "run")
    with pytest.raises(RunRefused, match="another process"):
        train(steps=1)
    held.release()


def test_processes_that_do_not_find_each_other_are_refused(train, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr("vtc.training.run.TrainingArguments", lambda **_: SimpleNamespace(world_size=1))
    with pytest.raises(VTCError, match="3 processes were started and 1 train together"):
        train(steps=1)


@pytest.mark.parametrize("text", ["[]", '["a"]', '["a", "b"]', '[1, ["b"]]', "{", '["a", [NaN]]', "[" * 100_000])
def test_answers_that_a_teacher_did_not_write_are_refused_by_line(tmp_path, text):
    (tmp_path / "answers.jsonl").write_text(f'["one", ["red"]]\n{text}\n')
    with pytest.raises(CheckpointError, match="answers.jsonl line 2"):
        read_answers(tmp_path / "answers.jsonl")


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"layers": 1}', '{"layers": [-1]}', '{"layers": ["1"]}', '{"layers": [1']
)
def test_layers_that_were_not_measured_are_refused(tmp_path, text):
    (tmp_path / "layers.json").write_text(text)
    with pytest.raises(CheckpointError, match="layers.json"):
        read_layers(tmp_path / "layers.json")
