"""A picture remembered once: every question gets what it gets in a prompt of its own."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import vtc
from tests import zoo
from tests.support import KINDS, exact_dtype, generate, logits
from tests.tolerances import assert_close
from vtc.engine.kv_cache import cache_bytes, cache_name
from vtc.errors import CheckpointError, NotReduced, UnsupportedModel, VTCError
from vtc.methods._spelling import build
from vtc.models import family_of

SPECS = {
    "adaptive": 0.2,
    "adaptive:memory=true": 0.2,
    "frozen": 1.0,
    "frozen:layer=3": 5,
    "divprune:rest=[0,3]+share/frozen:layer=3": 0.3,
}
WORDS_BETWEEN = (
    "idefics3",
    "smolvlm",
    "mistral3",
    "aya_vision",
    "cohere2_vision",
    "ovis2",
)  # a picture's vision tokens
NEVER = ("paligemma", "qwen3_5", *WORDS_BETWEEN)
WHOLE = [f for f in KINDS if f not in NEVER]
OTHERS = [f for f in zoo.NAMES if f not in (*WHOLE, *NEVER)]


def prompt_of(model, seed: int = 1) -> dict:
    """A picture and two words behind it, which run with each question."""
    return zoo.prompt(model, 1, seed=seed, after=2)


def questions(*lengths: int) -> list[torch.Tensor]:
    return [torch.tensor([zoo.words(n, seed=n)]) for n in lengths]


def asked_whole(prompt: dict, question: torch.Tensor) -> dict:
    """The same words in one prompt."""
    more = {"input_ids": question, "attention_mask": torch.ones_like(question)}
    more |= {key: torch.zeros_like(question) for key in ("token_type_ids", "mm_token_type_ids") if key in prompt}
    return {**prompt, **{key: torch.cat([prompt[key], value], dim=1) for key, value in more.items()}}


@pytest.mark.parametrize(
    ("family", "spec"),
    [
        *((family, spec) for family in WHOLE for spec in SPECS),
        *(pytest.param(family, "adaptive", marks=pytest.mark.slow) for family in OTHERS),
    ],
)
def test_each_question_is_answered_as_from_scratch(family, spec, model_of):
    model = model_of(family, dtype=exact_dtype(family))
    prompt = prompt_of(model)
    silent = {"suppress_tokens": list(family_of(model).token_ids.values())}
    vtc.patch(model, build(spec), SPECS[spec])
    memory = vtc.remember(model, prompt)
    for question in questions(5, 7):
        got = generate(model, memory.prompt(question), **silent)
        want = generate(model, asked_whole(prompt, question), **silent)
        assert torch.equal(got.sequences, want.sequences)
        for step, (one, other) in enumerate(zip(got.logits, want.logits, strict=True)):
            assert_close(f"step {step}", one, other)


def test_two_questions_choose_differently(model_of):
    """Or the equality above would not show that each chooses."""
    model = model_of("llava")
    vtc.patch(model, "frozen", 5)
    memory = vtc.remember(model, prompt_of(model))
    keys = []
    for question in questions(5, 7):
        given = memory.prompt(question)
        cache = given[cache_name(model)]
        generate(model, given, tokens=1)
        keys.append([layer.kept.index[:, :10].tolist() for layer in cache.layers])
    assert keys[0] != keys[1]


def test_questions_in_one_padded_batch(model_of):
    model = model_of("llava", dtype=torch.float64)
    vtc.patch(model, "adaptive", 0.2)
    memory = vtc.remember(model, prompt_of(model))
    asked = questions(7, 4)
    alone = [generate(model, memory.prompt(one)) for one in asked]
    ids = torch.cat([torch.nn.functional.pad(one, (7 - one.shape[1], 0)) for one in asked])
    together = generate(model, memory.prompt(ids, (ids > 0).long()))
    for row, one in enumerate(alone):
        for step, want in enumerate(one.logits):
            assert_close(f"question {row}, step {step}", together.logits[step][row], want[0])


def test_its_bytes_are_its_candidates_and_stay_so(model_of):
    model = model_of("llava")
    prompt = prompt_of(model)
    vtc.patch(model, "adaptive", 0.1)
    memory = vtc.remember(model, prompt)
    (of,) = {layer.memory.others.keys.shape[2] for layer in memory._cache.layers}
    assert of == 18  # six times 3 of 36
    words = int((prompt["input_ids"] != model.config.image_token_id).sum()) - 2
    layer = memory._cache.layers[0]
    assert memory.bytes == 2 * 4 * (of + words) * layer.keys.shape[1] * layer.keys.shape[3] * 4
    assert "18" not in repr(memory) and f"{memory.bytes:,}" in repr(memory)
    held = memory.bytes
    for question in questions(5, 6):
        given = memory.prompt(question)
        generate(model, given)
        assert memory.bytes == held, "a question left something in it"
        assert cache_bytes(given[cache_name(model)]) < held, "what the answer needs is the chosen keys alone"


def test_a_later_question_in_the_same_conversation(model_of):
    """With ``memory=True`` the cache of a question stays whole, too."""
    model = model_of("llava", dtype=torch.float64)
    prompt, (one, two) = prompt_of(model), questions(5, 7)
    vtc.patch(model, "frozen", 5, memory=True)
    ends = []
    for given in (vtc.remember(model, prompt).prompt(one), asked_whole(prompt, one)):
        first = generate(model, given, use_cache=True)
        again = torch.cat([first.sequences, two], dim=1)
        more = {"input_ids": again, "attention_mask": torch.ones_like(again)}
        cache = getattr(first, "cache" if hasattr(first, "cache") else "past_key_values")
        ends.append(generate(model, {**more, cache_name(model): cache}).logits)
    for step, (got, want) in enumerate(zip(*ends, strict=True)):
        assert_close(f"step {step}", got, want)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_saved_and_recalled(family, model_of, tmp_path):
    model = model_of(family)
    (question,) = questions(5)
    vtc.patch(model, "adaptive", 0.2)
    memory = vtc.remember(model, prompt_of(model))
    want = generate(model, memory.prompt(question))
    path = memory.save(tmp_path / "shelf" / "picture.safetensors")
    again = vtc.recall(zoo_patched(family), path)
    assert again.bytes == memory.bytes and repr(again) == repr(memory)
    got = generate(again.model, again.prompt(question))
    assert torch.equal(got.sequences, want.sequences) and all(map(torch.equal, got.logits, want.logits))


KEPT_ALIVE: list = []  # a memory does not keep its model alive


def zoo_patched(family: str, seed: int = 0, budget: float = 0.2):
    model = vtc.patch(zoo.build(family, seed=seed), "adaptive", budget)
    KEPT_ALIVE.append(model)
    return model


def test_it_is_refused_by_another_model_and_another_patch(model_of, tmp_path):
    model = model_of("llava")
    (question,) = questions(5)
    vtc.patch(model, "adaptive", 0.2)
    memory = vtc.remember(model, prompt_of(model))
    path = memory.save(tmp_path / "picture.safetensors")
    for other, named in ((zoo_patched("llava", seed=3), "model"), (zoo_patched("llava", budget=0.3), "budget")):
        with pytest.raises(CheckpointError, match=f"another {named}"):
            vtc.recall(other, path)
    same = zoo_patched("llava")
    with torch.no_grad():  # one weight
        next(iter(family_of(same).layers.parameters())).view(-1)[5] += 1e-3
    with pytest.raises(CheckpointError, match="another model"):
        vtc.recall(same, path)
    vtc.patch(model, "adaptive", 0.3)
    with pytest.raises(NotReduced, match=r"remembered with adaptive at 20% .* is adaptive at 30%"):
        memory.prompt(question)


def test_files_that_are_none(model_of, tmp_path):
    model = model_of("llava")
    vtc.patch(model, "adaptive", 0.2)
    path = vtc.remember(model, prompt_of(model)).save(tmp_path / "picture.safetensors")
    about = json.dumps(json.loads(metadata(path)))
    tensors, bad = load_file(path), tmp_path / "bad.safetensors"
    bad.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CheckpointError, match="no picture's memory"):
        vtc.recall(model, bad)
    with pytest.raises(CheckpointError, match="no picture's memory"):
        vtc.recall(model, tmp_path / "missing.safetensors")
    save_file(tensors, bad)
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        vtc.recall(model, bad)
    for name, change in {"0.keys": lambda t: t[..., :-1], "1.others.index": lambda t: t + 500}.items():
        save_file({**tensors, name: change(tensors[name]).contiguous()}, bad, metadata={"vtc": about})
        with pytest.raises(CheckpointError, match="damaged"):
            vtc.recall(model, bad)
    save_file({k: v for k, v in tensors.items() if k != "3.others.keys"}, bad, metadata={"vtc": about})
    with pytest.raises(CheckpointError, match="damaged"):
        vtc.recall(model, bad)


def metadata(path) -> str:
    raw = path.read_bytes()
    return json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]["vtc"]


def test_what_cannot_be_remembered(model_of):
    model = model_of("llava")
    prompt = prompt_of(model)
    with pytest.raises(VTCError, match="not patched"):
        vtc.remember(model, prompt)
    vtc.patch(model, "divprune", 0.5)
    with pytest.raises(VTCError, match="patched with divprune"):
        vtc.remember(model, prompt)
    vtc.patch(model, build("fastv:layer=1/frozen:layer=3:candidates=2"), 0.3)
    with pytest.raises(UnsupportedModel, match="looks at the question"):
        vtc.remember(model, prompt)
    vtc.patch(model, "adaptive", 0.2)
    with pytest.raises(ValueError, match="no picture"):
        vtc.remember(model, zoo.prompt(model, 0))
    with pytest.raises(ValueError, match="one prompt"):
        vtc.remember(model, zoo.batch([prompt, prompt_of(model, 2)]))
    with pytest.raises(UnsupportedModel, match="words stand between"):
        vtc.remember(model, zoo.prompt(model, 2))
    with pytest.raises(ValueError, match="at least one token"):
        vtc.remember(model, prompt).prompt(torch.zeros(1, 0, dtype=torch.long))
    paligemma = model_of("paligemma")
    vtc.patch(paligemma, "adaptive", 0.2)
    with pytest.raises(UnsupportedModel, match="see the words behind"):
        vtc.remember(paligemma, zoo.prompt(paligemma, 1))


@pytest.mark.parametrize("family", WORDS_BETWEEN)
def test_words_between_the_tokens_of_a_picture(family, model_of):
    model = model_of(family)
    vtc.patch(model, "adaptive", 0.2)
    with pytest.raises(UnsupportedModel, match="words stand between"):
        vtc.remember(model, prompt_of(model))


def test_words_between_pictures_are_no_hindrance_where_nothing_is_chosen(model_of):
    model = model_of("llava", dtype=torch.float64)
    prompt, (question,) = zoo.prompt(model, 2, after=2), questions(5)
    vtc.patch(model, "frozen", 1.0)
    got = generate(model, vtc.remember(model, prompt).prompt(question))
    want = generate(model, asked_whole(prompt, question))
    assert_close("logits", torch.stack(got.logits), torch.stack(want.logits))


def test_an_error_leaves_the_patch_as_it_was(model_of):
    model = model_of("llava")
    vtc.patch(model, "adaptive", 0.2)
    with pytest.raises(UnsupportedModel):
        vtc.remember(model, zoo.prompt(model, 2))
    with pytest.raises(UnsupportedModel, match="ends with its picture"):
        logits(model, zoo.prompt(model, 1, after=0))
