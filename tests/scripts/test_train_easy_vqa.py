"""scripts/train_easy_vqa.py: what it reads off the questions, its rows, and two steps on four pictures."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_easy_vqa.py"
QUESTIONS = [
    ["what color is the circle?", "red", 0],
    ["is there not a red shape?", "no", 0],
    ["what shape is present?", "triangle", 1],
    ["is a teal shape present?", "yes", 1],
    ["is there a blue rectangle?", "yes", 2],
    ["what is the blue shape?", "rectangle", 3],
]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_easy_vqa", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path):
    pictures = tmp_path / "data" / "train" / "images"
    pictures.mkdir(parents=True)
    for n in range(4):
        pixels = np.random.default_rng(n).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(pictures / f"{n}.png")
    (pictures.parent / "questions.json").write_text(json.dumps(QUESTIONS))
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("question", "answer", "shape", "color"),
    [
        ("what color is the circle?", "red", "circle", "red"),
        ("what shape is present?", "triangle", "triangle", None),
        ("is there a teal shape?", "yes", None, "teal"),
        ("is there a teal shape?", "no", None, None),
        ("is there not a circle in the image?", "no", "circle", None),
        ("is no red shape present?", "yes", None, None),
    ],
)
def test_traits(script, question, answer, shape, color):
    known = script.traits(question, answer)
    assert known.get(0) == (shape and script.SHAPES.index(shape))
    assert known.get(1) == (color and script.COLORS.index(color))


def test_rows_hold_the_prompt_of_vtc_eval(script, folder):
    pixels, _, questions, processor = script.load(folder)
    content = [{"type": "image"}, {"type": "text", "text": QUESTIONS[0][0]}]
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    asked = processor(text=[text], images=[[Image.fromarray(pixels[0])]], return_tensors="pt")
    ids, mask, positions, answers = script.pack(questions[:1], script.ROOM)
    length = asked["input_ids"].shape[1]
    assert ids[0, :length].tolist() == asked["input_ids"][0].tolist()
    assert answers[0].tolist() == [0, length - 1, questions[0][0][1]]
    second = answers[2, 1]
    assert mask[0, 0, second, : len(script.PREFIX)].eq(0).all(), "the second question sees the picture"
    assert mask[0, 0, second, len(script.PREFIX) : length + 1].lt(0).all(), "and not the first question"
    assert positions[0, length + 1] == len(script.PREFIX)


def test_two_steps(script, folder, monkeypatch, tmp_path):
    out = tmp_path / "model"
    monkeypatch.setattr(script, "TOWER_SHARE", 2)
    script.train(script.Student(folder), 1e-3, out)
    state = out.with_name("model.state.pt")
    at = torch.load(state)[0]
    assert at["tower"] >= 1 and at["decoder"] == 0 and not out.exists()
    monkeypatch.setattr(script, "TOWER_SHARE", 0)
    script.train(script.Student(folder), at["spent"] / 60 + 1e-3, out)
    then = torch.load(state)[0]
    assert then["tower"] == at["tower"] and then["decoder"] >= 1, "it goes on where it stopped"
    processor = AutoProcessor.from_pretrained(out)
    model = AutoModelForImageTextToText.from_pretrained(out, dtype=torch.float32)
    inputs = processor(
        text=["USER: <image> what ? ASSISTANT:"], images=[[Image.new("RGB", (64, 64))]], return_tensors="pt"
    )
    assert model(**inputs).logits.shape[1:] == (inputs["input_ids"].shape[1], len(processor.tokenizer))
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith((".tmp", ".new", ".best"))] == []
