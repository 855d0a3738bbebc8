"""Candidates that stay in the cache: each later turn chooses its keys anew, as if none had chosen before."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import DynamicCache

import vtc
from tests import zoo
from tests.engine.sites.test_frozen import HYBRID, LAYERS, on, rests
from tests.reference import (
    Chosen,
    choosing,
    cuts_of,
    dropped_rows,
    log_sizes,
    longer,
    masked,
    merged_input,
    restored,
    stopped_rows,
)
from tests.support import KINDS, engine, exact_dtype, generate, logits
from tests.tolerances import assert_close
from vtc.engine.capture.attention_hook import hook_attention
from vtc.engine.kv_cache import cache_bytes
from vtc.engine.sites.choice import Choice
from vtc.methods._spelling import build
from vtc.models import family_of

MORE = torch.tensor([zoo.words(5, seed=9)])  # a later turn's words
SPECS = {
    "adaptive:memory=true": 0.2,
    "frozen:layer=2:memory=true": 0.5,
    "divprune+share/frozen:candidates=2:memory=true": 0.3,
    "divprune:rest=[0,3]+share/frozen:memory=true": 0.12,
}
families = pytest.mark.parametrize("family", [f for f in KINDS if f not in ("paligemma", HYBRID)])
each = pytest.mark.parametrize("spec", SPECS)


def started(model, prompt: dict) -> DynamicCache:
    """The cache behind a first turn."""
    cache = DynamicCache(config=model.config.get_text_config())
    logits(model, prompt, past_key_values=cache, use_cache=True)
    return cache


def later(model, prompt: dict, cache: DynamicCache, text: torch.Tensor) -> torch.Tensor:
    """Logits of a later turn."""
    whole, where = both(prompt, text), {}
    if "image_grid_thw" in prompt:
        given = [whole[key] for key in ("input_ids", "mm_token_type_ids", "image_grid_thw")]
        found, _ = model.model.get_rope_index(*given, attention_mask=whole["attention_mask"])
        where["position_ids"] = found[..., prompt["input_ids"].shape[1] :]
    more = {"input_ids": text, "attention_mask": whole["attention_mask"], **where}
    return logits(model, more, past_key_values=cache, use_cache=True)


def both(prompt: dict, text: torch.Tensor) -> dict:
    """Both turns as one prompt."""
    more = {"input_ids": text, "attention_mask": torch.ones_like(text)}
    more |= {key: torch.zeros_like(text) for key in ("token_type_ids", "mm_token_type_ids") if key in prompt}
    return {**prompt, **{key: torch.cat([prompt[key], value], dim=1) for key, value in more.items()}}


def rows(layer, columns: int) -> torch.Tensor:
    """``[B, columns]``: the candidates that a cache layer remembers and that are no keys."""
    of = layer.memory.others.columns
    out = torch.zeros(of.index.shape[0], columns, dtype=torch.bool)
    for b, (index, valid) in enumerate(zip(of.index, of.valid, strict=True)):
        out[b, index[valid]] = True
    return out


def chosen_by_turn(model, cache: DynamicCache, first: dict, at: int, columns: int) -> dict:
    """What each layer chose in the first turn, ``first``, and in the later one, whose rows begin ``at``."""
    out = {}
    for index, one in first.items():
        layer = cache.layers[index]
        if one is not None:
            second = replace(one, others=rows(layer, columns), means=layer.memory.quota.with_mean.tolist(), first=at)
            one = replace(one, later=second)
        out[index] = one
    return out


@each
@families
def test_a_later_turn_equals_the_model_that_sees_what_it_chose(family, spec, model_of):
    model, method = model_of(family, dtype=exact_dtype(family)), on(family, spec)
    prompt, text = zoo.batch([zoo.prompt(model, n, seed=n) for n in (1, 2)]), MORE.repeat(2, 1)
    vtc.patch(model, method, SPECS[spec])
    start, columns = prompt["input_ids"].shape[1], prompt["input_ids"].shape[1] + MORE.shape[1]
    cache = started(model, prompt)
    own = engine(model)
    gone, cuts, sizes, still = dropped_rows(own), cuts_of(own), log_sizes(own), rests(model)
    first = {index: Chosen.of(own, index, columns) for index in range(LAYERS)}
    got = later(model, prompt, cache, text)
    keys = chosen_by_turn(model, cache, first, start, columns)
    moved = [n for n, one in keys.items() if one is not None and not torch.equal(one.others, one.later.others)]
    assert moved, "the second question chose what the first did, so this proves little"
    vtc.unpatch(model)
    merged = merged_input(model, cuts, True, deepstack=model.config.model_type == "qwen3_vl")
    gone, sizes, still = (longer(by_layer, columns) for by_layer in (gone, sizes, still))
    with restored(model, still), merged, masked(model, gone, sizes), choosing(model, keys):
        want = logits(model, both(prompt, text))
    assert_close("second turn", got, want[:, start:])


@each
@families
def test_a_later_turn_chooses_what_it_looks_at_most(family, spec, model_of):
    """By the attention of the unpatched model in that layer, all candidates the keys of its rows."""
    model, method = model_of(family, dtype=exact_dtype(family)), on(family, spec)
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, method, SPECS[spec])
    start, columns = prompt["input_ids"].shape[1], prompt["input_ids"].shape[1] + MORE.shape[1]
    cache = started(model, prompt)
    own = engine(model)
    gone, cuts, sizes, still = dropped_rows(own), cuts_of(own), log_sizes(own), rests(model)
    first, vision = {n: Chosen.of(own, n, columns) for n in range(LAYERS)}, longer({0: stopped_rows(own)}, columns)[0]
    later(model, prompt, cache, MORE)
    keys = chosen_by_turn(model, cache, first, start, columns)
    vtc.unpatch(model)
    gone, sizes, still = (longer(by_layer, columns) for by_layer in (gone, sizes, still))
    for layer, one in keys.items():
        if one is None:
            continue
        found: dict = {}

        def look(q, k, mask, scale, found=found):
            found.update(q=q, k=k, mask=mask, scale=scale)

        # Hooks run in the order in which they came: what the first turn's rows see is chosen, what the later ones' not.
        open_ = replace(one, later=replace(one.later, others=torch.zeros_like(vision)))
        undo = hook_attention(family_of(model).decoder_attention(layer), look)
        merged = merged_input(model, cuts, True, deepstack=model.config.model_type == "qwen3_vl")
        with restored(model, still), merged, masked(model, gone, sizes), choosing(model, {**keys, layer: open_}):
            logits(model, both(prompt, MORE))
        undo()
        k = found["k"].repeat_interleave(found["q"].shape[1] // found["k"].shape[1], dim=1)
        weights = (found["q"] @ k.mT * found["scale"] + found["mask"]).softmax(-1).mean(dim=1)
        score = weights[0][start:].amax(dim=0).masked_fill(~vision[0] | gone[layer][0], -1)
        there = vision[0] & ~gone[layer][0]
        picked = there & ~one.later.others[0]
        assert picked.nonzero()[:, 0].tolist() == score.topk(int(picked.sum())).indices.sort().values.tolist(), layer
        assert 0 < picked.sum() < there.sum()


@each
def test_the_cache_holds_all_candidates_and_no_more(spec, model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, build(spec), SPECS[spec])
    cache = started(model, prompt)
    (one,) = vtc.report(model).pictures
    text = prompt["input_ids"].shape[1] - one.tokens_in
    for keys, layer in zip(one.tokens_by_layer, cache.layers, strict=True):
        assert layer.keys.shape[2] == keys + text, "a step reads what the budget bought"
        if layer.memory is not None:
            of = engine(model).current.candidates[1]
            assert keys + layer.memory.others.keys.shape[2] == of.count[0] + of.with_mean[0]
    assert vtc.report(model).kv_bytes == cache_bytes(cache)
    held = cache_bytes(cache)
    later(model, prompt, cache, MORE)
    head = cache.layers[0].keys
    assert cache_bytes(cache) - held == 2 * LAYERS * MORE.shape[1] * head.shape[1] * head.shape[3] * head.element_size()


@pytest.mark.parametrize("family", ["llava", "idefics3"])
def test_turns_in_a_padded_batch_choose_as_alone(family, model_of):
    model = model_of(family)
    prompts = [zoo.prompt(model, n, seed=n, after=6 - n) for n in (2, 1)]
    texts = [torch.tensor([zoo.words(n, seed=n)]) for n in (5, 3)]
    vtc.patch(model, "adaptive", 0.12, memory=True)
    alone = [later(model, p, started(model, p), text)[:, -1] for p, text in zip(prompts, texts, strict=True)]
    together, wide = zoo.batch(prompts), max(text.shape[1] for text in texts)
    together["position_ids"] = (together["attention_mask"].cumsum(1) - 1).clamp(min=0)
    cache = started(model, together)
    padded = torch.cat([torch.nn.functional.pad(t, (wide - t.shape[1], 0)) for t in texts])
    real = torch.cat([torch.nn.functional.pad(torch.ones_like(t), (wide - t.shape[1], 0)) for t in texts])
    mask = torch.cat([together["attention_mask"], real], dim=1)
    where = (mask.cumsum(1) - 1).clamp(min=0)[:, -wide:]
    more = {"input_ids": padded, "attention_mask": mask, "position_ids": where}
    assert_close("together", logits(model, more, past_key_values=cache, use_cache=True)[:, -1], torch.cat(alone))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_beams_and_their_order_carry_the_memory(family, model_of):
    model = model_of(family)
    prompts = [zoo.prompt(model, 1, seed=n) for n in (1, 2)]
    vtc.patch(model, "frozen", 0.3, memory=True)
    want = torch.cat([later(model, p, started(model, p), MORE) for p in prompts])
    together = zoo.batch(prompts)
    cache = started(model, together)
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([3, 2, 1, 0]))
    cache.batch_select_indices(torch.tensor([2, 0]))
    assert_close("reordered", later(model, together, cache, MORE.repeat(2, 1)), want)
    assert [layer.memory.quota.keys.shape[0] for layer in cache.layers] == [2] * LAYERS


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 1}])
def test_what_generate_writes_and_verifies_chooses_nothing(options, model_of, monkeypatch):
    """Candidates that are rejected change no word: the keys are chosen once in a turn."""
    model = model_of("llava")
    prompt = zoo.prompt(model, 1, before=6, after=8)
    prompt["input_ids"][0, -8:] = torch.tensor([7, 8, 9, 7, 10, 8, 9, 7])
    times: list[int] = []
    choose = Choice._choose
    monkeypatch.setattr(Choice, "_choose", lambda self, *args: (times.append(1), choose(self, *args))[1])
    vtc.patch(model, "frozen", 0.3)
    want = generate(model, prompt, 12, eos_token_id=999, **options).sequences
    vtc.patch(model, "frozen", 0.3, memory=True)
    got = generate(model, prompt, 12, eos_token_id=999, **options).sequences
    assert len(times) == 2 * LAYERS
    assert torch.equal(got, want)


def test_generate_chooses_anew_in_its_second_turn(model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "frozen", 0.3, memory=True)
    cache = DynamicCache(config=model.config.get_text_config())
    first = generate(model, prompt, past_key_values=cache).sequences
    before = [layer.memory.others.columns.index for layer in cache.layers]
    again = torch.cat([first, MORE], dim=1)
    generate(model, {"input_ids": again, "attention_mask": torch.ones_like(again)}, past_key_values=cache)
    after = [layer.memory.others.columns.index for layer in cache.layers]
    assert not all(map(torch.equal, before, after))


def test_without_memory_a_later_turn_keeps_the_keys_of_the_first(model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "frozen", 0.3)
    cache = started(model, prompt)
    before = [layer.keys.clone() for layer in cache.layers]
    later(model, prompt, cache, MORE)
    for layer, keys in zip(cache.layers, before, strict=True):
        assert layer.memory is None and torch.equal(layer.keys[:, :, : keys.shape[2]], keys)


def test_memory_is_of_what_a_question_may_choose(model_of):
    with pytest.raises(ValueError, match="no question chooses"):
        build("adaptive:layer=null:memory=true")
    with pytest.raises(ValueError, match="memory=3 is not a bool"):
        build("frozen:memory=3")
    with pytest.raises(ValueError, match="no question chooses"):  # recurrent decoders have the first cut alone
        vtc.patch(model_of(HYBRID), memory=True)


def test_taking_tokens_back_leaves_the_memory(model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "frozen", 0.3, memory=True)
    want = later(model, prompt, started(model, prompt), MORE)
    cache = started(model, prompt)
    for token in MORE[0, :2].tolist():
        logits(model, {"input_ids": torch.tensor([[token]])}, past_key_values=cache, use_cache=True)
    cache.crop(-2)
    assert_close("after a crop", later(model, prompt, cache, MORE), want)


def test_a_later_picture_shares_what_both_may_have(model_of):
    """Both pictures' candidates stay, and the later question chooses of both as many keys as they had."""
    model = model_of("llava", dtype=torch.float64)
    first, second = zoo.prompt(model, 1, seed=1), zoo.prompt(model, 1, seed=2)
    vtc.patch(model, "frozen", 9, memory=True)
    cache = started(model, first)
    mask = torch.cat([first["attention_mask"], second["attention_mask"]], dim=1)
    logits(model, {**second, "attention_mask": mask}, past_key_values=cache, use_cache=True)
    words = sum(p["input_ids"].shape[1] - 36 for p in (first, second))
    for layer in cache.layers:
        there = layer.kept.valid.sum() if layer.kept.valid is not None else layer.keys.shape[2]
        assert there == 2 * 9 + words
        assert layer.memory.others.columns.valid.sum() == 2 * 36 - 17
