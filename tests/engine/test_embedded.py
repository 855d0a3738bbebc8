"""Prompts of embeddings that hold a picture's features already: reduced like the picture, or refused, never whole."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

import vtc
from tests import zoo
from tests.reference import dropped_rows, masked
from tests.support import engine, generate, kept, logits
from tests.tolerances import assert_close
from vtc.errors import NotReduced, UnsupportedModel, VTCError
from vtc.models import family_of
from vtc.patching.api import paused

TILED = ("internvl", "idefics3", "smolvlm", "aya_vision", "cohere2_vision", "ovis2", "got_ocr2")  # ids alone say whose
QUICK = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "gemma3", "idefics3")
FAMILIES = [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in zoo.NAMES]


def features(model, prompt: dict) -> Tensor:
    """``[T, D]``: all features of the prompt's pictures, in order."""
    vision = {key: value for key, value in prompt.items() if key not in zoo.PER_TOKEN}
    with torch.no_grad():
        pooled = zoo.features(model, "image", vision).pooler_output
    return pooled.flatten(0, -2) if isinstance(pooled, Tensor) else torch.cat(list(pooled))


def words(model, ids: Tensor) -> Tensor:
    table = model.get_input_embeddings()
    with torch.no_grad():
        return table(ids.clamp(max=table.num_embeddings - 1))


def embedded(model, prompt: dict, rows: Tensor) -> dict:
    """The prompt with ``rows`` in place of its placeholders, as people write it."""
    embeds = words(model, prompt["input_ids"])
    where = (prompt["input_ids"] == family_of(model).token_ids["image"])[..., None].expand_as(embeds)
    embeds = embeds.masked_scatter(where, rows.to(embeds.dtype))
    masks = {key: prompt[key] for key in ("attention_mask", "token_type_ids") if key in prompt}
    return {"inputs_embeds": embeds, **masks}


@pytest.mark.parametrize("method", ["divprune", "fastervlm", "fastv"])  # they only drop, so masking is the reference
@pytest.mark.parametrize("family", FAMILIES)
def test_features_in_the_embeddings_are_reduced(family, method, model_of):
    model = model_of(family)
    prompt = zoo.prompt(model, 2)
    if family in ("aria", "perception_lm", "got_ocr2", "qwen3_5") and method != "divprune":
        pytest.skip(f"{method} refuses {family}")
    vtc.patch(model, method, budget=0.4)
    logits(model, zoo.prompt(model, 1, seed=8))  # an earlier picture, which nobody asks for
    given = embedded(model, prompt, features(model, prompt))
    if family in TILED:
        with pytest.raises(UnsupportedModel, match="pass input_ids"):
            logits(model, given)
        return
    ours = logits(model, given)
    assert [p.tokens_in for p in vtc.report(model).pictures] == engine(model).current.full
    assert len(vtc.report(model).pictures) == 2
    gone = dropped_rows(engine(model))
    vtc.unpatch(model)
    if not family_of(model).hybrid:
        with masked(model, gone):
            assert_close("last word", ours[:, -1], logits(model, given)[:, -1])


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"use_cache": False}])
def test_they_answer_as_the_prompt_of_ids_does(options, model_of):
    model = model_of("llava")
    # Before features were handed to beams ready-made, transformers mixed up a prompt's several pictures by itself.
    several = 2 if "mm_encoder_outputs" in inspect.signature(model.forward).parameters else 1
    prompt = zoo.prompt(model, several)
    vtc.patch(model, "visionzip", budget=0.4)
    want = generate(model, prompt, tokens=1 if "use_cache" in options else 4, **options).sequences
    tokens = kept(model)
    given = embedded(model, prompt, features(model, prompt))
    got = generate(model, given, tokens=1 if "use_cache" in options else 4, **options).sequences
    assert torch.equal(got, want[:, prompt["input_ids"].shape[1] :])
    assert kept(model) == tokens


def test_a_padded_batch_of_them(model_of):
    model = model_of("llava")
    prompts = zoo.batch([zoo.prompt(model, n, seed=n) for n in (1, 2)])
    vtc.patch(model, "visionzip", budget=0.4)
    want = logits(model, prompts)[:, -1]
    given = embedded(model, prompts, features(model, prompts))
    given["inputs_embeds"][prompts["attention_mask"] == 0] = 0  # what people fill padding with
    assert_close("last word", logits(model, given)[:, -1], want)


def _before(model, prompt):
    vtc.unpatch(model)
    rows = features(model, prompt)
    vtc.patch(model, "divprune", budget=0.4)
    return rows


def _paused(model, prompt):
    with paused(model):
        return features(model, prompt)


def _in_two_calls(model, prompt):
    pixels = prompt["pixel_values"]
    return torch.cat([features(model, {"pixel_values": one}) for one in pixels.split(1)])


def _swapped(model, prompt):
    return torch.cat(features(model, prompt).chunk(2)[::-1])


STRANGE = {
    "computed before the patch": _before,
    "computed while paused": _paused,
    "in two calls": _in_two_calls,
    "in another order": _swapped,
    "one twice": lambda model, prompt: features(model, prompt).chunk(2)[0].repeat(2, 1),
    "changed": lambda model, prompt: features(model, prompt) * 1.01,
    "of another precision": lambda model, prompt: features(model, prompt).bfloat16(),
    "of noise": lambda model, prompt: torch.randn_like(features(model, prompt)),
}


@pytest.mark.parametrize("how", STRANGE)
def test_rows_that_may_be_pictures_are_refused(how, model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 2)
    vtc.patch(model, "divprune", budget=0.4)
    logits(model, zoo.prompt(model, 2, seed=8))
    given = embedded(model, prompt, STRANGE[how](model, prompt))
    for call in (lambda: logits(model, given), lambda: generate(model, given)):
        with pytest.raises(NotReduced, match=r"inputs_embeds.*input_ids"):
            call()
    with paused(model):
        ours = logits(model, given)
    vtc.unpatch(model)
    assert torch.equal(ours, logits(model, given))


@pytest.mark.parametrize("family", FAMILIES)
def test_words_alone_pass(family, model_of):
    """Text as embeddings, on its own and as the next turn of a reduced prompt."""
    model = model_of(family)
    text = {"inputs_embeds": words(model, torch.tensor([zoo.words(9, seed=1)]))}
    logits(model, zoo.prompt(model, 1))  # Qwen's models place what follows by their last picture
    want = logits(model, text)
    vtc.patch(model, "divprune", budget=0.4)
    logits(model, zoo.prompt(model, 1))
    assert torch.equal(logits(model, text), want)


def test_words_of_another_precision_are_words(model_of):
    """As autocast takes them."""
    model = model_of("llava")
    vtc.patch(model, "divprune", budget=0.4)
    with torch.autocast("cpu", torch.bfloat16):
        logits(model, {"inputs_embeds": words(model, torch.tensor([zoo.words(9, seed=1)])).bfloat16()})


def test_words_that_were_learned_are_refused_with_a_remedy(model_of):
    """Soft prompts cannot be told from a picture."""
    model = model_of("llava")
    vtc.patch(model, "divprune", budget=0.4)
    soft = torch.cat([torch.randn(1, 3, 64)[..., : words(model, torch.tensor([[1]])).shape[-1]]], dim=1)
    text = {"inputs_embeds": torch.cat([soft, words(model, torch.tensor([[5, 6]]))], dim=1)}
    with pytest.raises(NotReduced, match=r"row 0 of prompt 0 .*vtc\.unpatch"):
        logits(model, text)
    with paused(model):
        logits(model, text)


def test_a_report_never_speaks_of_an_earlier_picture(model_of):
    model = model_of("llava")
    vtc.patch(model, "divprune", budget=0.4)
    prompt = zoo.prompt(model, 1, seed=3)
    rows = features(model, prompt)
    logits(model, zoo.prompt(model, 2))
    given = embedded(model, prompt, rows)
    with pytest.raises(VTCError):
        logits(model, given)
    logits(model, embedded(model, prompt, features(model, prompt)))
    assert len(vtc.report(model).pictures) == 1
