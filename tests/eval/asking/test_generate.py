"""Prompts, pictures in them, and batches that answer as each question alone."""

from __future__ import annotations

import pytest
import torch

import vtc
from tests.eval.tiny import picture, tiny_processor
from vtc.errors import DataError
from vtc.eval.asking.generate import Answerer, Asked
from vtc.eval.benchmarks import Benchmark, Sample

FRAME = Benchmark.frame
TEMPLATE = (
    "{% for message in messages %}USER: {% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }} {% endfor %}{% endfor %}ASSISTANT:"
)


@pytest.fixture
def answerer(vlm):
    return Answerer(*vlm, FRAME, max_new_tokens=6)


@pytest.fixture(params=["frame", "chat template"])
def either(request, answerer, monkeypatch):
    """The same processor without and with a chat template: the prompts must be equal."""
    if request.param == "chat template":
        monkeypatch.setattr(answerer.processor, "chat_template", TEMPLATE)
    return answerer


def words(prompt: str) -> str:
    return " ".join(prompt.split())


def test_pictures_come_first_or_where_the_question_says(either):
    assert words(either.prompt("what is it ?", 1)) == "USER: <image> what is it ? ASSISTANT:"
    assert words(either.prompt("what is it ?", 2)) == "USER: <image> <image> what is it ? ASSISTANT:"
    assert words(either.prompt("is <image> left of <image> ?", 2)) == "USER: is <image> left of <image> ? ASSISTANT:"
    assert words(either.prompt("what ?", 0)) == "USER: what ? ASSISTANT:"


@pytest.mark.parametrize(("question", "pictures"), [("<image> ?", 2), ("<image> <image> ?", 1), ("<image> ?", 0)])
def test_marks_must_match_the_pictures(either, question, pictures):
    with pytest.raises(DataError, match=r"q:1: .* <image> in the question and \d picture"):
        either.prompt(question, pictures, "q:1")


def test_the_models_own_mark_in_a_question_is_refused(either, monkeypatch):
    monkeypatch.setattr(either.processor, "image_token", "<|pad|>")
    with pytest.raises(DataError, match="own mark"):
        either.prompt("what is <|pad|> ?", 1, "q:1")


def test_a_template_that_loses_pictures_is_told(answerer, monkeypatch):
    monkeypatch.setattr(answerer.processor, "chat_template", "{{ messages[0]['content'][-1]['text'] }}")
    with pytest.raises(DataError, match="did not place 1 picture"):
        answerer.prompt("what ?", 1)


def test_the_users_template_wraps_the_question(vlm):
    answerer = Answerer(*vlm, FRAME, template="{question} one of {red} ?")
    assert answerer.prompt("what", 1) == "USER: <image> what one of {red} ? ASSISTANT:"
    with pytest.raises(DataError, match="no {question}"):
        Answerer(*vlm, FRAME, template="what ?")


def asked(answerer, question, *seeds):
    return Asked(Sample("x", question), [picture(s) for s in seeds], answerer.prompt(question, len(seeds)))


def test_a_ragged_batch_answers_as_each_alone(answerer):
    batch = [
        asked(answerer, "what is the color of the shape ?", 1),
        asked(answerer, "is <image> left of <image> ?", 2, 3),
        asked(answerer, "what ?", 4),
    ]
    together = answerer.answers(answerer.inputs(batch))
    assert together == [answerer.answers(answerer.inputs([one]))[0] for one in batch]
    assert len(set(together)) == 3  # the pictures matter
    inputs = answerer.inputs(batch)
    assert answerer.vision_rows(inputs) == [16, 32, 16]
    assert inputs["input_ids"][2, 0] == answerer.processor.tokenizer.pad_token_id


def test_inputs_have_the_models_dtype(vlm):
    model, processor = vlm
    answerer = Answerer(model, processor, FRAME)
    try:
        model.to(torch.bfloat16)
        assert answerer.inputs([asked(answerer, "what ?", 0)])["pixel_values"].dtype == torch.bfloat16
    finally:
        model.to(torch.float32)


def test_batches_need_a_padding_token(vlm):
    answerer = Answerer(vlm[0], tiny_processor(), FRAME)
    answerer.processor.tokenizer.pad_token = None
    batch = [asked(answerer, "what ?", 0)] * 2
    with pytest.raises(DataError, match="--batch-size 1"):
        answerer.inputs(batch)


def test_what_a_prompt_spends(answerer):
    """Beams run a prompt several times and spend once; a prompt without pictures spends nothing."""
    both = [asked(answerer, "what is the color ?", 0), asked(answerer, "what is the color ?")]
    alone = both[1:]
    inputs = answerer.inputs(both)
    assert answerer.spent(both, inputs) == [16, 0]
    with vtc.patched(answerer.model, "random", budget=4):
        for beams in (1, 3):
            answerer.generate(inputs, num_beams=beams)
            assert answerer.spent(both, inputs, beams) == [4, 0]
        inputs = answerer.inputs(alone)
        answerer.generate(inputs)
        assert answerer.spent(alone, inputs) == [0]
