"""Invariants 8 and 9: what cannot be reduced raises, naming value, bound and remedy; never a silent no-op."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from transformers import DynamicCache, StaticCache

import vtc
from tests import zoo
from tests.support import METHODS, REFUSED, engine, generate, kept, logits, refused
from tests.versions import before, skip_before
from vtc.engine.kv_cache import CACHE_NAMES, RowCacheLayer
from vtc.errors import BudgetError, NotReduced, UnknownName, UnsupportedModel, VTCError


@pytest.mark.parametrize("family", zoo.UNSUPPORTED)
def test_models_whose_pictures_cannot_be_reduced_raise(family):
    """Trap 5: blip2, kosmos2 and mllama once reduced nothing and said nothing."""
    with pytest.raises(UnsupportedModel, match="use a model"):
        vtc.patch(zoo.build(family))


def test_a_layer_that_names_its_cache_otherwise_raises(model_of, monkeypatch):
    """As transformers 5.24 renamed it: the engine would see no cache, and answers would change without an error."""
    model = model_of("llava")

    def forward(self, hidden_states, attention_mask=None, position_ids=None, kv=None, **kwargs):
        raise AssertionError

    monkeypatch.setattr(type(model.model.language_model.layers[0]), "forward", forward)
    with pytest.raises(UnsupportedModel, match=r"LlamaDecoderLayer.forward takes no cache or past_key_values"):
        vtc.patch(model, "random", budget=2)
    assert vtc.patch_of(model) is None


@pytest.mark.parametrize("name", sorted(CACHE_NAMES))
def test_either_name_of_the_cache_is_the_cache(name, model_of):
    """Of a forward's arguments; transformers before 5.24 knows only the older."""
    model = model_of("llava")
    vtc.patch(model, "divprune", budget=4, share=True)
    if name not in inspect.signature(type(model).forward).parameters and before("transformers", 5, 24):
        pytest.skip("transformers before 5.24: it has the older name alone")
    cache = DynamicCache()
    model(**zoo.prompt(model, 1), **{name: cache})
    assert isinstance(cache.layers[0], RowCacheLayer) and cache.layers[0].keys.shape[-2] < cache.get_seq_length()


def test_a_text_model_raises():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(UnsupportedModel):
        vtc.patch(LlamaForCausalLM(config))


@pytest.mark.parametrize(("family", "method"), sorted(REFUSED))
def test_pairs_without_the_signal_raise(family, method, model_of):
    model = model_of(family)
    refused(model, method, zoo.prompt(model, 1))


def test_text_passes_through_a_patched_model(model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 0)
    plain = generate(model, prompt).sequences
    vtc.patch(model, "fastv", budget=12)
    assert torch.equal(generate(model, prompt).sequences, plain)
    with pytest.raises(NotReduced, match="call the model on a prompt with a picture"):
        vtc.report(model)


def test_a_forward_that_goes_around_the_patch_raises(model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "random", budget=4)
    layers = model.model.language_model.layers
    forwards = [layer.__dict__.pop("forward") for layer in layers]
    try:
        with pytest.raises(NotReduced, match="unpatch"):
            logits(model, prompt)
    finally:
        for layer, forward in zip(layers, forwards, strict=True):
            object.__setattr__(layer, "forward", forward)


def test_static_quantized_and_offloaded_caches_raise(model_of):
    """Trap 4: a static cache was silently wrong from the first step."""
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    plain = logits(model, prompt)
    vtc.patch(model, "divprune", budget=0.25)
    with pytest.raises(UnsupportedModel, match="DynamicCache"):
        generate(model, prompt, cache_implementation="static")
    with pytest.raises(UnsupportedModel, match="DynamicCache"), torch.no_grad():
        cache = StaticCache(config=model.config.get_text_config(), max_cache_len=128)
        model(**prompt, past_key_values=cache, use_cache=True)
    with pytest.raises(UnsupportedModel, match="DynamicCache"), torch.no_grad():
        cache = DynamicCache(config=model.config.get_text_config())
        cache.offloading = True  # building one needs a GPU
        model(**prompt, past_key_values=cache, use_cache=True)
    vtc.unpatch(model)
    assert torch.equal(logits(model, prompt), plain), "the model is usable after the errors"


def test_flex_attention_raises():
    from vtc.engine.attention.masks import LazyMask
    from vtc.engine.rows import Columns

    index = torch.arange(4)[None]
    with pytest.raises(UnsupportedModel, match="sdpa"):
        _ = LazyMask(object(), index, Columns(index), 4, 4, torch.float32, "sdpa").mask


@pytest.fixture
def flash(monkeypatch):
    """SDPA under a name that means flash: transformers builds flash's masks (``[B, T]`` or None) for it."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask

    seen = []

    def attend(module, q, k, v, mask, **kwargs):
        seen.append(mask)
        rows, columns = q.shape[2], k.shape[2]
        keys = torch.ones(q.shape[0], columns, dtype=torch.bool) if mask is None else mask.bool()
        causal = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows)
        allowed = causal & keys[:, None, None] | torch.eye(rows, columns, dtype=torch.bool).roll(columns - rows, 1)
        return sdpa_attention_forward(module, q, k, v, allowed, **{**kwargs, "is_causal": False})

    AttentionInterface.register("made_up_flash", attend)
    AttentionMaskInterface.register("made_up_flash", flash_attention_mask)
    return seen


@pytest.mark.parametrize("method", ["random", "fastv", "pyramiddrop", "sparsevlm", "visionzip"])
def test_flash_attention_gets_flat_masks_and_keeps_the_same_tokens(method, flash):
    model = zoo.build("llava")
    prompt, padded = zoo.prompt(model, 1), zoo.batch([zoo.prompt(model, n, seed=n) for n in (0, 1, 2)])
    answers, sets = [], []
    for attn in ("sdpa", "made_up_flash"):
        model.set_attn_implementation({"text_config": attn, "vision_config": "sdpa"})
        vtc.patch(model, method, budget=0.5)
        answers.append([generate(model, one).sequences for one in (prompt, padded)])
        logits(model, padded)
        sets.append(kept(model))
        with torch.no_grad():  # a second turn on a reduced cache
            cache = model(**prompt, use_cache=True).past_key_values
            answers[-1].append(model(input_ids=torch.tensor([[5, 6, 7]]), past_key_values=cache).logits.argmax(-1))
    assert all(mask is None or mask.dim() == 2 for mask in flash)
    assert sets[0] == sets[1]
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))


def test_a_reduced_cache_is_not_read_without_its_patch(model_of):
    model = model_of("llava")
    with vtc.patched(model, "divprune", budget=0.25, share=True), torch.no_grad():
        cache = model(**zoo.prompt(model, 1), use_cache=True).past_key_values
    with pytest.raises(NotReduced, match="while the patch is on"), torch.no_grad():
        model(input_ids=torch.tensor([[5]]), past_key_values=cache, use_cache=True)


def test_pictures_beside_a_prompt_of_embeddings_never_pass_unreduced(model_of):
    model = model_of("idefics3")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "random", budget=4)
    embeds = model.get_input_embeddings()(prompt["input_ids"])
    given = {**{k: v for k, v in prompt.items() if k != "input_ids"}, "inputs_embeds": embeds}
    with pytest.raises((NotReduced, ValueError)):
        logits(model, given)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_onevision"])
def test_a_video_beside_a_prompt_of_embeddings_is_reduced(family, model_of):
    model = model_of(family)
    prompt = zoo.video_prompt(model)
    vtc.patch(model, "divprune", budget=0.25)
    logits(model, prompt)
    want = kept(model)
    embeds = model.get_input_embeddings()(prompt["input_ids"])
    given = {
        **{k: v for k, v in prompt.items() if k not in ("input_ids", "mm_token_type_ids")},
        "inputs_embeds": embeds,
    }
    logits(model, given)
    assert kept(model) == want


def test_features_can_be_used_twice(model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "visionzip", budget=0.25)
    with torch.no_grad():
        features = model.model.get_image_features(prompt["pixel_values"], return_dict=True)
    ready = {**{k: v for k, v in prompt.items() if k != "pixel_values"}, "mm_encoder_outputs": {"image": features}}
    assert torch.equal(logits(model, dict(ready)), logits(model, dict(ready)))


def test_nothing_big_outlives_the_forward(model_of):
    model = model_of("llava")
    vtc.patch(model, "visionzip", budget=0.25)
    logits(model, zoo.prompt(model, 1))
    p = engine(model).current
    assert [c.tokens.features.untyped_storage().nbytes() for c in p.cuts] == [0]
    assert p.layout.entries[0][0].run.arguments["pixel_values"].is_meta
    assert p.restored is None and not engine(model).arguments.cut_once


def test_packed_sequences_and_chunked_prefill_raise(model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "divprune", budget=0.25)
    with pytest.raises(UnsupportedModel, match="pad the prompts"):
        logits(model, prompt, cu_seq_lens_q=torch.tensor([0, 3, 7]))
    skip_before("transformers", 5, 23, why="chunked prefill leaves the pictures out, patched or not")
    with pytest.raises(VTCError, match="chunked prefill"):  # trap 10: the selection would differ by chunk
        generate(model, prompt, prefill_chunk_size=16)


def test_a_generated_placeholder_does_not_trigger_a_reduction(model_of):
    """Trap 10: a decode step whose token happens to be the placeholder id."""
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "divprune", budget=0.25)
    with torch.no_grad():
        cache = model(**prompt, use_cache=True).past_key_values
        held = [layer.keys.shape[-2] for layer in cache.layers]
        model(input_ids=torch.tensor([[model.config.image_token_id]]), past_key_values=cache, use_cache=True)
    assert [layer.keys.shape[-2] for layer in cache.layers] == [n + 1 for n in held]


def test_position_gaps_do_not_look_like_packed_sequences(model_of):
    """Trap 2: without mask and cache, gaps in the positions once cost the last query its picture."""
    model = model_of("llava", attn="eager")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "random", budget=0.25)
    seen = []
    layer = model.model.language_model.layers[1]
    handle = layer.self_attn.register_forward_pre_hook(
        lambda m, a, k: seen.append((k.get("attention_mask"), k.get("position_ids"))), with_kwargs=True
    )
    short = {k: v for k, v in prompt.items() if k != "attention_mask"}
    with torch.no_grad():
        model(**short, use_cache=False)
    handle.remove()
    mask, positions = seen[0]
    assert positions is None
    assert (mask[0, 0, -1] == 0).all(), "the last row sees every kept row"


def test_features_without_a_heard_tower_raise_only_for_methods_that_need_it(model_of):
    skip_before("transformers", 5, 18, why="models take no mm_encoder_outputs")
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    with torch.no_grad():
        features = model.model.get_image_features(prompt["pixel_values"], return_dict=True)
    ready = {**{k: v for k, v in prompt.items() if k != "pixel_values"}, "mm_encoder_outputs": {"image": features}}
    vtc.patch(model, "divprune", budget=0.25)
    want = logits(model, prompt)
    assert torch.equal(logits(model, ready), want)
    vtc.patch(model, "visionzip", budget=0.25)
    with pytest.raises(NotReduced, match="after vtc.patch"):
        logits(model, ready)


def test_a_prompt_given_as_embeddings_is_reduced(model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "divprune", budget=0.25)
    want = logits(model, prompt)
    embeds = model.get_input_embeddings()(prompt["input_ids"])
    given = dict(inputs_embeds=embeds, pixel_values=prompt["pixel_values"], attention_mask=prompt["attention_mask"])
    assert torch.equal(logits(model, given), want)
    assert vtc.report(model).average_tokens == 9


ABSURD = [0, -1, 1.5, 0.0, -0.25, True, False, math.nan, math.inf, "many", "150%", None, [64]]


@pytest.mark.parametrize("budget", ABSURD)
def test_absurd_budgets_raise_and_leave_the_model_alone(budget, model_of):
    model = model_of("llava")
    with pytest.raises(BudgetError, match="give|least"):
        vtc.patch(model, "random", budget=budget)
    assert vtc.patch_of(model) is None


MEANT = [(1, 1), (1.0, 36), (10**9, 36), (10**30, 36), (10**400, 36), (0.5, 18), (1e-9, 1), (35, 35)]
TYPED = [("25%", 9), ("0.5", 18), ("7", 7), (" 64 ", 36)]


@pytest.mark.parametrize(("budget", "tokens"), MEANT + TYPED)
def test_what_a_budget_means(budget, tokens, model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "random", budget=budget)
    logits(model, prompt)
    assert vtc.report(model).average_tokens == tokens


@pytest.mark.parametrize("model", [None, "./my-vlm", 7, ["llava"]])
@pytest.mark.parametrize(
    "verb",
    [
        *(vtc.patch, vtc.unpatch, vtc.patch_of, vtc.report, lambda model: vtc.save(model, "nowhere")),
        *(vtc.compress, lambda model: vtc.calibrate(model, [{}]), lambda model: vtc.calibrate_spend(model, [{}], 0.5)),
    ],
)
def test_what_is_no_model_is_told_so(verb, model):
    with pytest.raises(UnsupportedModel, match="is no model; load one first"):
        verb(model)


def test_unknown_names_and_options_name_the_neighbours(model_of):
    model = model_of("llava")
    with pytest.raises(UnknownName, match="'divprune'"):
        vtc.patch(model, "divprun")
    with pytest.raises(ValueError, match="has no option 'sede'; did you mean 'seed'"):
        vtc.patch(model, "random", sede=1)
    with pytest.raises(ValueError, match="already built"):
        vtc.patch(model, vtc.methods.Random(), seed=1)
    with pytest.raises(ValueError, match="neither a name"):
        vtc.patch(model, 7)
    with pytest.raises(ValueError, match="share=True needs a stage"):
        vtc.patch(model, "fastv", share=True)
    with pytest.raises(ValueError, match="below 4"):
        vtc.patch(model, vtc.methods.FastV(layer=9))
    with pytest.raises(VTCError, match="not patched"):
        vtc.report(model)


@pytest.mark.parametrize("method", METHODS)
def test_nan_features_give_a_result_and_a_usable_model(method, model_of):
    """One NaN pixel makes a whole tower NaN: every method still keeps its budget, and the model recovers."""
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, method, budget=0.5)
    want = logits(model, prompt)
    bad = {**prompt, "pixel_values": torch.full_like(prompt["pixel_values"], math.nan)}
    logits(model, bad)
    assert vtc.report(model).average_tokens <= 18
    assert torch.equal(logits(model, prompt), want)


def test_more_or_fewer_placeholders_than_features_raise(model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "random", budget=4)
    fewer = {**prompt, "input_ids": prompt["input_ids"][:, 10:], "attention_mask": prompt["attention_mask"][:, 10:]}
    with pytest.raises(ValueError, match="tokens"):
        logits(model, fewer)
    assert logits(model, prompt).shape[1] == prompt["input_ids"].shape[1]
