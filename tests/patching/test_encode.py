"""Rows handed to another engine: the plain language model answers from them as the patched model does."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

import vtc
from tests import zoo
from tests.support import logits
from vtc.errors import UnsupportedModel, VTCError
from vtc.models import family_of

# What the engine must bring besides rows: a mask by which vision tokens see those behind them; windows counted by
# positions and not by rows; embeddings of its own for the words around a picture.
MORE = ("gemma3", "paligemma", "aya_vision", "cohere2_vision", "ovis2")
DEEPSTACK = ("qwen3_vl",)
ELSEWHERE = [n for n in zoo.NAMES if n not in (*MORE, *DEEPSTACK, *zoo.FLOAT32_ONLY)]


def elsewhere(model, ids, pictures):
    """Logits of the language model on words and pictures' rows, as an engine would put them together."""
    family = family_of(model)
    vision = torch.isin(ids[0], torch.tensor(list(family.token_ids.values()))).tolist()
    words = model.get_input_embeddings()(ids)[0]
    rows, places, here, at = [], [], 0, 0
    left = list(pictures)
    while at < len(vision):
        if not vision[at]:
            rows.append(words[at : at + 1])
            places.append(torch.full((pictures[0].positions.shape[1], 1), here))
            here, at = here + 1, at + 1
            continue
        one = left.pop(0)
        rows.append(one.embeddings)
        places.append(here + one.positions.T)
        here, at = here + one.span, at + one.tokens
    position = torch.cat(places, dim=1)[:, None]
    states = family.decoder(
        inputs_embeds=torch.cat(rows)[None], position_ids=position[0] if len(position) == 1 else position
    )
    return model.lm_head(states.last_hidden_state)[0, -1]


def check(model, prompt, method, budget):
    vtc.patch(model, method, budget)
    want = logits(model, prompt)[0, -1]
    encoded = vtc.encode(model, prompt)
    vtc.unpatch(model)
    with torch.no_grad():
        got = elsewhere(model, prompt["input_ids"], encoded.pictures)
    assert torch.allclose(got, want, rtol=0, atol=1e-9)
    assert all((one.sizes == 1).all() for one in encoded.pictures)
    return encoded


@pytest.mark.parametrize("budget", [0.4, 1.0])
@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_plain_language_model_answers_as_the_patched_one(name, budget):
    model = zoo.build(name, dtype=torch.float64)
    check(model, zoo.prompt(model, 2), "divprune", budget)


@pytest.mark.parametrize("method", ["visionzip", "bipartite", "pool"])
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_methods_that_merge_or_look_at_the_tower(name, method):
    model = zoo.build(name, dtype=torch.float64)
    check(model, zoo.prompt(model, 1), method, 0.4)


def test_a_video():
    model = zoo.build("qwen2_5_vl", dtype=torch.float64)
    check(model, zoo.video_prompt(model), "evs", 0.4)


def test_what_is_learned_is_in_the_rows():
    model = zoo.build("llava", dtype=torch.float64)
    vtc.patch(model, "perceiver", 4)
    prompt = zoo.prompt(model, 1)
    plain = vtc.encode(model, prompt).pictures[0].embeddings
    torch.nn.init.normal_(model.vtc_learned.write.weight)
    assert not torch.equal(vtc.encode(model, prompt).pictures[0].embeddings, plain)


def test_sizes_are_what_rows_weigh():
    model = zoo.build("llava")
    vtc.patch(model, "divprune+share", 3)
    (one,) = vtc.encode(model, zoo.prompt(model, 1)).pictures
    assert one.sizes.sum() == one.tokens and one.embeddings.shape[0] == 3
    assert one.positions.shape == (3, 1) and one.span == one.tokens
    assert (one.positions.diff(dim=0) > 0).all()


def test_the_prompts_of_a_batch_as_each_alone():
    model = zoo.build("qwen2_5_vl", dtype=torch.float64)
    vtc.patch(model, "divprune", 4)
    prompts = [zoo.prompt(model, 1, seed=0), zoo.prompt(model, 2, seed=1)]
    together = vtc.encode(model, zoo.batch(prompts)).pictures
    alone = [one for prompt in prompts for one in vtc.encode(model, prompt).pictures]
    for one, other in zip(together, alone, strict=True):
        assert torch.allclose(one.embeddings, other.embeddings, rtol=0, atol=1e-9)
        assert torch.equal(one.positions, other.positions) and one.span == other.span


def test_the_file(tmp_path):
    model = zoo.build("llava")
    vtc.patch(model, "divprune", 4)
    encoded = vtc.encode(model, **zoo.prompt(model, 2))
    file = encoded.save(tmp_path / "pictures.safetensors")
    with safe_open(file, "pt") as opened:
        said = json.loads(opened.metadata()["vtc"])
        for n, one in enumerate(encoded.pictures):
            assert said["pictures"][n] == {"tokens": one.tokens, "span": one.span}
            for name in ("embeddings", "positions", "sizes"):
                assert torch.equal(opened.get_tensor(f"{n}.{name}"), getattr(one, name))
    assert said["method"] == "divprune" and said["budget"] == "4" and len(said["model"]) == 64


def test_the_model_is_as_before():
    model = zoo.build("llava")
    vtc.patch(model, "divprune", 4)
    prompt = zoo.prompt(model, 1)
    want = logits(model, prompt)
    hooks = len(model.get_decoder()._forward_pre_hooks)
    vtc.encode(model, prompt)
    with pytest.raises(ValueError, match="no picture"):
        vtc.encode(model, zoo.prompt(model, 0))
    assert torch.equal(logits(model, prompt), want)
    assert len(model.get_decoder()._forward_pre_hooks) == hooks and vtc.patch_of(model).engine.bypass


@pytest.mark.parametrize(
    ("name", "method", "error", "why"),
    [
        ("llava", None, VTCError, "call vtc.patch"),
        ("llava", "fastv", VTCError, "inside the decoder"),
        ("llava", "frozen", VTCError, "inside the decoder"),
        ("llava", "kvmerge", VTCError, "inside the decoder"),
        ("llava", "cdpruner", VTCError, "looks at the question"),
        ("qwen3_vl", "divprune", UnsupportedModel, "DeepStack"),
    ],
)
def test_refusals(name, method, error, why):
    model = zoo.build(name)
    if method:
        vtc.patch(model, method, 0.5)
    with pytest.raises(error, match=why):
        vtc.encode(model, zoo.prompt(model, 1))
