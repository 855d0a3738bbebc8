"""Batches of conversations: labels on answers alone, prompts as they are asked, pictures whole."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoProcessor

from tests.eval.tiny import picture, tiny_processor
from vtc.errors import DataError
from vtc.eval import scenes
from vtc.eval.asking.generate import Answerer
from vtc.eval.benchmarks.base import Benchmark
from vtc.training.collate import Collator
from vtc.training.conversations import Conversation, Turn

CHAT = (
    "{% for m in messages %}USR {% if m.role == 'assistant' %}{% endif %}"
    "{% for p in m.content %}{% if p.type == 'image' %}<image> {% else %}{{ p.text }}{% endif %}{% endfor %}"
    "{% if m.role == 'assistant' %} </s>{% endif %} {% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
ONE = Conversation("one", (Turn("what is the color ?", "red"),), (picture(1),))
TWO = Conversation("two", (Turn("<image> what ?", "blue"), Turn("is the shape left ?", "yes no")), (picture(2),))
TEXT = Conversation("text", (Turn("what ?", "two"),))


@pytest.fixture(scope="module")
def collate():
    return Collator(tiny_processor())


def learned(collate, batch, row):
    return collate.tokenizer.decode(batch["labels"][row][batch["labels"][row] != -100])


def read(collate, batch, row):
    return collate.tokenizer.decode(batch["input_ids"][row][batch["attention_mask"][row].bool()]).replace(
        "<image> ", ""
    )


def test_labels_stand_on_answers_and_their_ends_alone(collate):
    batch = collate([ONE, TWO, TEXT])
    assert [learned(collate, batch, n) for n in range(3)] == ["red </s>", "blue </s> yes no </s>", "two </s>"]
    assert read(collate, batch, 0) == "USER: what is the color ? ASSISTANT: red </s>"
    assert (
        read(collate, batch, 1) == "USER: what ? ASSISTANT: blue </s> USER: is the shape left ? ASSISTANT: yes no </s>"
    )
    assert batch["sample_ids"] == ["one", "two", "text"]
    assert len(batch["pixel_values"]) == 2
    assert (batch["input_ids"] == 4).sum(1).tolist() == [16, 16, 0]


def test_padding_is_on_the_right_and_not_learned(collate):
    batch = collate([ONE, TEXT])
    real = batch["attention_mask"].bool()
    assert real[:, 0].all() and not real[1, -1]
    assert (batch["labels"][~real] == -100).all() and (batch["input_ids"][~real] == 0).all()
    alone = collate([TEXT])
    assert torch.equal(batch["input_ids"][1][real[1]], alone["input_ids"][0])


@pytest.mark.parametrize("kind", ["tiny", "testbed"])
def test_a_prompt_is_the_one_that_vtc_eval_asks(kind):
    processor = tiny_processor() if kind == "tiny" else AutoProcessor.from_pretrained(scenes.checkpoint_path())
    question, collate = "what color is the ring ?", Collator(processor)
    batch = collate([Conversation("x", (Turn(question, "red"),), (picture(1),))])
    asked = Answerer(None, processor, Benchmark.frame).prompt(question, 1)
    want = processor(text=[asked], images=[[picture(1)]], return_tensors="pt")
    begin = int((batch["labels"][0] != -100).nonzero()[0])
    assert batch["input_ids"][0, :begin].tolist() == want["input_ids"][0].tolist()
    assert torch.equal(batch["pixel_values"], want["pixel_values"])
    assert batch["input_ids"][0, begin:].tolist() == processor.tokenizer("red </s>", add_special_tokens=False).input_ids


def test_a_chat_template_is_followed_and_its_end_of_turn_learned():
    processor = tiny_processor()
    processor.chat_template = CHAT
    collate = Collator(processor)
    batch = collate([TWO])
    assert learned(collate, batch, 0) == "blue </s> yes no </s>"
    whole = processor.apply_chat_template(
        [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what ?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "blue"}]},
            {"role": "user", "content": [{"type": "text", "text": "is the shape left ?"}]},
        ],
        add_generation_prompt=True,
        tokenize=False,
    )
    want = processor(text=[whole], images=[[picture(2)]])["input_ids"][0]
    last = int((batch["labels"][0] != -100).nonzero()[-3])
    got = batch["input_ids"][0, :last].tolist()
    asks = [i for i in want if i != 3]  # the first answer is opened by ASSISTANT: here, and by USR when it is past
    assert [i for i in got if i not in (3, 6)] == [i for i in asks if i != 6]


def test_a_template_that_leaves_answers_out_takes_one_question():
    collate = Collator(AutoProcessor.from_pretrained(scenes.checkpoint_path()))
    with pytest.raises(DataError, match="sample two: .*one question a conversation"):
        collate([TWO])


def test_pictures_in_later_turns(collate):
    row = Conversation("late", (Turn("what ?", "two"), Turn("and <image> what ?", "red")), (picture(1),))
    batch = collate([row, ONE])
    first = int((batch["labels"][0] != -100).nonzero()[0])
    assert not (batch["input_ids"][0, :first] == 4).any()
    assert (batch["input_ids"] == 4).sum(1).tolist() == [16, 16]


def test_too_long_conversations_lose_whole_turns_from_the_end():
    collate = Collator(tiny_processor(), max_length=25)
    batch = collate([TWO])
    assert learned(collate, batch, 0) == "blue </s>"
    assert (batch["input_ids"] == 4).sum() == 16


@pytest.mark.parametrize("length", [3, 10, 20])
def test_pictures_are_never_cut(length):
    with pytest.raises(DataError, match=f"sample one: 25 tokens, above max_length {length}"):
        Collator(tiny_processor(), max_length=length)([ONE])


def test_a_picture_in_a_turn_that_would_go_raises():
    row = Conversation("late", (Turn("what ?", "two"), Turn("<image> what ?", "red")), (picture(1),))
    with pytest.raises(DataError, match="sample late.*would take a picture"):
        Collator(tiny_processor(), max_length=10)([row])


def test_marks_and_pictures_must_agree(collate):
    with pytest.raises(DataError, match="sample x: 1 <image> and 0"):
        collate([Conversation("x", (Turn("<image> what ?", "red"),), (), where="f:1")])


def test_a_tokenizer_without_padding_is_refused():
    processor = tiny_processor()
    processor.tokenizer.pad_token = None
    with pytest.raises(DataError, match="padding token"):
        Collator(processor)
