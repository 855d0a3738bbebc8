"""Invariants 4 and 5: batches, beams, sampling, turns, hand-written loops and attention backends change no answer."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers import DynamicCache

import vtc
from tests import zoo
from tests.reference import dropped_rows, equals_the_whole, longer, masked
from tests.support import KINDS, PAIRS, SOME_PAIRS, engine, generate, kept, logits, refused
from tests.tolerances import assert_close


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_a_padded_ragged_batch_answers_as_each_prompt_alone(family, method, model_of):
    model = model_of(family)
    prompts = [zoo.prompt(model, n, seed=n, after=6 - n) for n in ((1, 2) if family == "qwen3_5" else (0, 1, 2))]
    vtc.patch(model, method, budget=0.4)
    if family == "qwen3_5":  # recurrent layers: prompts whose pictures shrink alike
        prompts = [zoo.prompt(model, 1, seed=0), zoo.prompt(model, 1, seed=2, after=3)]
    alone, sets = [], []
    for prompt in prompts:
        alone.append(generate(model, prompt))
        sets += kept(model) if (prompt["input_ids"] == model.config.image_token_id).any() else []
    together = generate(model, zoo.batch(prompts))
    assert kept(model) == sets
    for b, one in enumerate(alone):
        for step, want in enumerate(one.logits):
            assert_close(f"prompt {b}, step {step}", together.logits[step][b], want[0])


@pytest.mark.parametrize(("family", "method"), SOME_PAIRS)
def test_beams_keep_what_one_prompt_keeps(family, method, model_of):
    model = model_of(family)
    # Before features were handed to beams ready-made, transformers mixed up a prompt's several pictures by itself.
    several = 2 if "mm_encoder_outputs" in inspect.signature(model.forward).parameters else 1
    prompts = [zoo.prompt(model, n, seed=n) for n in (several, 1)]
    vtc.patch(model, method, budget=0.4)
    alone = [generate(model, prompt, num_beams=3).sequences[0, -4:] for prompt in prompts]
    both = generate(model, zoo.batch(prompts), num_beams=3).sequences[:, -4:]
    assert torch.equal(both, torch.stack(alone))
    generate(model, prompts[0])
    once = kept(model)
    generate(model, prompts[0], num_beams=3)
    assert kept(model) == once * 3


@pytest.mark.parametrize("family", KINDS)
def test_sampling_with_a_seed_repeats(family, model_of):
    model = model_of(family)
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "divprune", budget=0.4)
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(generate(model, prompt, do_sample=True).sequences)
    assert torch.equal(*draws)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("family", KINDS)
def test_a_second_turn_on_the_same_cache(family, share, model_of):
    """A follow-up question on the cache = decoding the same tokens one by one; trap: physical lengths."""
    model = model_of(family)
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "divprune", budget=0.4, share=share)
    more = torch.tensor([zoo.words(5, seed=9)])
    ends = []
    for chunks in ([more], list(more.split(1, dim=1))):
        cache = DynamicCache(config=model.config.get_text_config())
        with torch.no_grad():
            model(**prompt, past_key_values=cache, use_cache=True)
            for chunk in chunks:
                ends.append(model(input_ids=chunk, past_key_values=cache, use_cache=True).logits[:, -1])
    if family != "paligemma":  # its second turn is a bidirectional prefix again
        assert_close("last word", ends[0], ends[-1])
    assert cache.get_seq_length() == prompt["input_ids"].shape[1] + 5


@pytest.mark.parametrize("method", ["divprune", "visionzip"])
@pytest.mark.parametrize("family", ["llava", "llava_next", "idefics3"])
def test_a_second_picture_on_the_same_cache(family, method, model_of):
    """Two pictures in two turns = both in one prompt, when each picture is reduced by itself."""
    model = model_of(family)
    both = zoo.prompt(model, 2, between=3)
    vtc.patch(model, method, budget=0.4)
    want = logits(model, both)[:, -1]
    ids = both["input_ids"]
    is_picture = ids[0] == model.config.image_token_id
    runs = torch.nonzero(is_picture)[:, 0]
    per_picture = len(runs) // 2 if family != "llava_next" else 168
    split = int(runs[per_picture - 1]) + 1 + (1 if family == "idefics3" else 0)
    cache = DynamicCache(config=model.config.get_text_config())
    vision = {k: v for k, v in both.items() if k not in zoo.PER_TOKEN}
    axis = 1 if family == "idefics3" else 0
    with torch.no_grad():
        for turn, part in enumerate((ids[:, :split], ids[:, split:])):
            half = {k: v.chunk(2, dim=axis)[turn] for k, v in vision.items()}
            mask = torch.ones(1, cache.get_seq_length() + part.shape[1], dtype=torch.long)
            out = model(input_ids=part, attention_mask=mask, past_key_values=cache, use_cache=True, **half)
    assert_close("last word", out.logits[:, -1], want)


@pytest.mark.parametrize(("family", "method"), SOME_PAIRS)
def test_a_manual_loop_without_position_ids(family, method, model_of):
    """Trap 1: a cache that reports physical lengths passes every generate() test and fails here."""
    model = model_of(family)
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, method, budget=0.4)
    wanted = generate(model, prompt, tokens=5)
    ids = prompt["input_ids"]
    with torch.no_grad():
        out = model(**prompt, use_cache=True)
        steps = [out.logits[:, -1]]
        for _ in range(4):
            ids = torch.cat([ids, steps[-1].argmax(-1, keepdim=True)], dim=1)
            out = model(input_ids=ids[:, -1:], past_key_values=out.past_key_values, use_cache=True)
            steps.append(out.logits[:, -1])
    for step, (got, want) in enumerate(zip(steps, wanted.logits, strict=True)):
        assert_close(f"step {step}", got, want)


@pytest.mark.parametrize("family", ["gemma3", "aya_vision", "cohere2_vision"])
@pytest.mark.parametrize("method", ["random", "fastv", "pyramiddrop", "sparsevlm_v2"])
def test_a_sliding_window_past_the_width_coincidence(family, method, model_of):
    """Trap 3: stored length, mask width and window meet at 16; decode well past that and compare with no cache."""
    model = model_of(family)
    prompt = zoo.prompt(model, 2)
    vtc.patch(model, method, budget=0.4)
    cached = generate(model, prompt, tokens=24)
    assert cached.sequences.shape[1] > 40
    logits(model, prompt)
    gone = dropped_rows(engine(model))
    vtc.unpatch(model)
    with masked(model, longer(gone, cached.sequences.shape[1] - 1)):
        equals_the_whole(model, prompt, cached)


@pytest.mark.parametrize(("family", "method"), SOME_PAIRS)
def test_eager_and_sdpa_keep_the_same_tokens(family, method, model_of):
    prompts, answers, sets = None, [], []
    for attn in ("sdpa", "eager"):
        model = model_of(family, attn=attn)
        prompts = zoo.batch([zoo.prompt(model, n, seed=n) for n in (1, 2)])
        vtc.patch(model, method, budget=0.4, **({"share": True} if method == "divprune" else {}))
        answers.append(logits(model, prompts)[:, -1])
        sets.append(kept(model))
        vtc.unpatch(model)
    assert sets[0] == sets[1]
    assert_close("logits", *answers)


def test_changing_the_attention_implementation_after_patching(model_of):
    model = zoo.build("llava")
    prompt = zoo.batch([zoo.prompt(model, n, seed=n) for n in (1, 2)])
    vtc.patch(model, "fastv", budget=0.4)
    first, tokens = logits(model, prompt)[:, -1], kept(model)
    model.set_attn_implementation("eager")
    assert_close("logits", logits(model, prompt)[:, -1], first)
    assert kept(model) == tokens


def test_right_padding_ranks_by_the_last_real_row(model_of):
    model = model_of("llava")
    prompts = [zoo.prompt(model, 1, seed=1, after=3), zoo.prompt(model, 1, seed=2, after=9)]
    for method in ("fastv", "pyramiddrop", "sparsevlm"):
        vtc.patch(model, method, budget=0.5)
        alone = []
        for prompt in prompts:
            logits(model, prompt)
            alone += kept(model)
        logits(model, zoo.batch(prompts, side="right"))
        assert kept(model) == alone


@pytest.mark.parametrize("family", zoo.VIDEOS)
@pytest.mark.parametrize("method", ["divprune", "visionzip", "pool"])
def test_a_video_is_one_picture(family, method, model_of):
    model = model_of(family)
    prompt = zoo.video_prompt(model)
    if (family, method) == ("video_llava", "pool"):  # its frames keep a CLS token, which has no place
        return refused(model, method, prompt)
    plain = logits(model, prompt)
    vtc.patch(model, method, budget=0.25)
    ours = logits(model, prompt)
    (picture,) = vtc.report(model).pictures
    assert picture.tokens_in == int((prompt["input_ids"] == engine(model).family.token_ids["video"]).sum())
    assert picture.average == max(1, picture.tokens_in // 4)
    assert not torch.equal(ours, plain)


def test_prompt_lookup_decoding_gives_the_same_tokens(model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "divprune", budget=0.4)
    want = generate(model, prompt, tokens=8).sequences
    assert torch.equal(generate(model, prompt, tokens=8, prompt_lookup_num_tokens=3).sequences, want)


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "sparsevlm", "divprune"])
@pytest.mark.parametrize("family", ["llava", "aya_vision", "qwen2_5_vl"])
def test_words_before_a_picture_in_an_earlier_turn(family, method, model_of):
    """Text first, then a picture on the same cache = both in one prompt: rankings see the cached keys too."""
    model = model_of(family)
    prompt = zoo.prompt(model, 1, before=6)
    vtc.patch(model, method, budget=0.5)
    want = logits(model, prompt)[:, -1]
    tokens = kept(model)
    cache = DynamicCache(config=model.config.get_text_config())
    first, rest = prompt["input_ids"].split([4, prompt["input_ids"].shape[1] - 4], dim=1)
    vision = {k: v for k, v in prompt.items() if k not in zoo.PER_TOKEN}
    where = {"position_ids": torch.arange(4, prompt["input_ids"].shape[1])[None]} if family != "qwen2_5_vl" else {}
    if family == "qwen2_5_vl":
        full, _ = model.model.get_rope_index(prompt["input_ids"], prompt["mm_token_type_ids"], prompt["image_grid_thw"])
        where = {"position_ids": full[..., 4:]}
    with torch.no_grad():
        model(input_ids=first, past_key_values=cache, use_cache=True)
        out = model(input_ids=rest, past_key_values=cache, use_cache=True, **vision, **where)
    assert kept(model) == tokens
    assert_close("last word", out.logits[:, -1], want)


@pytest.mark.parametrize("family", ["llava", "llava_next", "mistral3"])
def test_fastv_ranks_as_full_attention_does(family, model_of):
    """An independent check of signal and rows: eager attention maps of the unpatched model, ranked in plain Python."""
    model = model_of(family, attn="eager")
    prompt = zoo.batch([zoo.prompt(model, n, seed=n) for n in (1, 2)])
    with torch.no_grad():
        attention = model(**prompt, output_attentions=True).attentions[0].mean(dim=1)[:, -1]  # layer 0, last row
    vtc.patch(model, "fastv", budget=0.5)
    logits(model, prompt)
    layout = engine(model).current.layout
    for i, tokens in enumerate(kept(model)):
        rows = layout.row[i, : layout.count[i]].tolist()
        score = attention[layout.prompts[i]]
        best = sorted(range(len(rows)), key=lambda n: -float(score[rows[n]]))[: len(tokens)]
        assert sorted(best) == tokens


def test_two_pictures_side_by_side_are_two(model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 2, between=0)
    vtc.patch(model, "random", budget=4)
    logits(model, prompt)
    assert [p.tokens_in for p in vtc.report(model).pictures] == [36, 36]
    assert [p.average for p in vtc.report(model).pictures] == [4, 4]


def test_tiles_with_words_between_are_one_picture(model_of):
    model = model_of("idefics3")
    vtc.patch(model, "random", budget=6)
    logits(model, zoo.prompt(model, 2))
    assert [p.tokens_in for p in vtc.report(model).pictures] == [48, 48]
    assert [p.average for p in vtc.report(model).pictures] == [6, 6]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava_onevision"])
def test_a_picture_and_a_video_in_one_prompt(family, model_of):
    model = model_of(family)
    first, second = zoo.prompt(model, 1), zoo.video_prompt(model)
    both = {k: torch.cat([first[k], second[k]], dim=1) for k in zoo.PER_TOKEN if k in first}
    both |= {k: v for one in (first, second) for k, v in one.items() if k not in zoo.PER_TOKEN}
    vtc.patch(model, "visionzip", budget=0.5)
    sets = []
    for one in (first, second, both):
        logits(model, one)
        sets.append(kept(model))
    assert sets[2] == sets[0] + sets[1]
    assert [p.tokens_by_layer[0] for p in vtc.report(model).pictures] == [
        p // 2
        for p in (
            int((first["input_ids"] == model.config.image_token_id).sum()),
            int((second["input_ids"] == model.config.video_token_id).sum()),
        )
    ]
