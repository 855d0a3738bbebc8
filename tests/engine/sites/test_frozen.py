"""Vision tokens that stop running and stay keys: equal to a slow reference that masks columns and puts rows back."""

from __future__ import annotations

import math
import re
from functools import partial

import pytest
import torch
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import DynamicCache

import vtc
from tests import zoo
from tests.reference import (
    Chosen,
    before_norm,
    candidate_rows,
    choosing,
    cuts_of,
    dropped_rows,
    equals_the_whole,
    log_sizes,
    longer,
    masked,
    merged_input,
    restored,
    still_rows,
    stopped_rows,
)
from tests.support import KINDS, engine, exact_dtype, generate, logits
from tests.tolerances import assert_close
from vtc.engine.capture.attention_hook import hook_attention
from vtc.engine.memory import Quota, Stored
from vtc.engine.report import Picture
from vtc.engine.rows import Columns
from vtc.engine.sites.choice import chosen_of
from vtc.errors import BudgetError, UnsupportedModel
from vtc.methods import Frozen
from vtc.methods._spelling import build
from vtc.models import family_of

LAYERS = 4  # of the models here
CUT_BETWEEN = "divprune+share/fastv:layer=1/frozen:layer=2:candidates=2"
SPECS = {  # and a budget
    "adaptive": 0.12,
    "frozen": 1.0,
    "frozen:layer=2": 0.5,
    "divprune/frozen:layer=2:candidates=2": 0.3,
    "divprune+share/frozen:candidates=2": 0.3,
    "pool/frozen:layer=3": 0.1,
    "divprune:rest=[0,3]+share/frozen": 0.12,
    "frozen:running=0": 1.0,
    "adaptive:running=0": 0.12,
    "frozen:layer=1:running=0.25": 1.0,
    "frozen:layer=2:running=0.5": 0.3,
    "adaptive:running=0.34": 0.12,
    "divprune+share/frozen:candidates=2:running=0.9": 0.3,
    "divprune:rest=[0,2]+share/frozen:layer=1:running=0.5": 0.12,
    CUT_BETWEEN: 0.3,
}
HYBRID = "qwen3_5"
families = pytest.mark.parametrize("family", [f for f in KINDS if f not in ("paligemma", HYBRID)])
each = pytest.mark.parametrize("spec", SPECS)


def on(family: str, spec: str):
    """The method; behind DeepStack vision tokens can stop in the last layer alone."""
    return build(re.sub(r"frozen:layer=\d", "frozen:layer=3", spec) if family == "qwen3_vl" else spec)


def test_the_specs_cut_where_they_say(model_of):
    """Or the tests here would be of candidates that are all there is."""
    model = model_of("llava")
    for spec, budget in SPECS.items():
        vtc.patch(model, build(spec), budget)
        logits(model, zoo.prompt(model, 1))
        cuts = engine(model).current.cuts
        assert len(cuts) == len(build(spec).stages()) - 1
        assert all(cut.keep[0] < cut.tokens.count[0] for cut in cuts), spec


def stops(model) -> dict:
    """What stays as it is from the layer on in which vision tokens stop."""
    own = engine(model)
    return {layer: still_rows(own) for layer in range(own.freezes_at, LAYERS)}


def rests(model) -> dict:
    """And where they rest before."""
    own = engine(model)
    return stops(model) | {layer: stopped_rows(own) for layer in own.method.rest}


def chosen(model, columns: int) -> dict:
    return {layer: Chosen.of(engine(model), layer, columns) for layer in range(LAYERS)}


@each
@families
def test_frozen_equals_masking_and_putting_back(family, spec, model_of):
    model, method = model_of(family, dtype=exact_dtype(family)), on(family, spec)
    prompt = zoo.batch([zoo.prompt(model, n, seed=n) for n in (1, 2)])
    vtc.patch(model, method, SPECS[spec])
    with before_norm(model) as seen:
        logits(model, prompt)
    own = engine(model)
    gone, cuts, sizes = dropped_rows(own), cuts_of(own), log_sizes(own)
    still, keys, vision = rests(model), chosen(model, prompt["input_ids"].shape[1]), stopped_rows(own)
    vtc.unpatch(model)
    merged = partial(merged_input, model, cuts, True, deepstack=model.config.model_type == "qwen3_vl")
    there = prompt["attention_mask"].bool() & ~vision
    with before_norm(model) as want, restored(model, still), merged(), masked(model, gone, sizes):
        with choosing(model, keys):
            logits(model, prompt)
    assert_close("text rows", seen[0][there], want[0][there])
    with before_norm(model) as control, merged(), masked(model, gone, sizes), choosing(model, keys):
        logits(model, prompt)
    moved = (control[0] - seen[0])[there].abs().max()
    assert len(still) == 1 or moved > 1e-4, "tokens that run give the same, so this proves little"


@each
@families
def test_the_keys_are_those_the_question_looks_at_most(family, spec, model_of):
    """By the attention of the unpatched model in that layer, all candidates its keys."""
    model, method = model_of(family, dtype=exact_dtype(family)), on(family, spec)
    prompt = zoo.batch([zoo.prompt(model, n, seed=n) for n in (1, 2)])
    vtc.patch(model, method, SPECS[spec])
    logits(model, prompt)
    own = engine(model)
    plans, vision, p = own.current.plans, stopped_rows(own), own.current
    gone, cuts, sizes, still = dropped_rows(own), cuts_of(own), log_sizes(own), rests(model)
    keys = chosen(model, prompt["input_ids"].shape[1])
    picked = {
        n: candidate_rows(p, plan.candidates, plan.chosen) for n, plan in plans.items() if plan.chosen is not None
    }
    vtc.unpatch(model)
    assert picked or SPECS[spec] == 1.0
    for layer, got in picked.items():
        found: dict = {}

        def look(q, k, mask, scale, found=found):
            found.update(q=q, k=k, mask=mask, scale=scale)

        undo = hook_attention(family_of(model).decoder_attention(layer), look)
        merged = merged_input(model, cuts, True, deepstack=model.config.model_type == "qwen3_vl")
        with restored(model, still), merged, masked(model, gone, sizes), choosing(model, {**keys, layer: None}):
            logits(model, prompt)
        undo()
        k = found["k"].repeat_interleave(found["q"].shape[1] // found["k"].shape[1], dim=1)
        weights = (found["q"] @ k.mT * found["scale"] + found["mask"]).softmax(-1).mean(dim=1)
        of = plans[layer].candidates
        for b in range(2):
            asks = list(range(int(vision[b].nonzero().max()) + 1, vision.shape[1]))
            score = weights[b][asks].amax(dim=0).masked_fill(~vision[b] | gone[layer][b], -1)
            count = of.keys[b] - of.with_mean[b]
            assert got[b].nonzero()[:, 0].tolist() == score.topk(count).indices.sort().values.tolist(), layer
            assert count < of.count[b]


@each
@families
def test_decoding_goes_on_as_the_whole_sequence(family, spec, model_of):
    plain = spec.replace("+share", "").replace("pool", "divprune").replace("adaptive", "adaptive:share=false")
    method, model = on(family, plain), model_of(family, dtype=exact_dtype(family))
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, method, budget=SPECS[spec])
    logits(model, prompt)
    gone, still = dropped_rows(engine(model)), rests(model)
    out = generate(model, prompt, tokens=6, suppress_tokens=list(family_of(model).token_ids.values()))
    columns = out.sequences.shape[1] - 1
    logits(model, prompt)
    keys = chosen(model, columns)
    vtc.unpatch(model)
    with restored(model, longer(still, columns)), masked(model, longer(gone, columns)), choosing(model, keys):
        equals_the_whole(model, prompt, out)


@each
def test_cache_and_report_show_the_keys_that_the_budget_bought(spec, model_of):
    model, method = model_of("llava"), build(spec)
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, method, SPECS[spec])
    cache = DynamicCache(config=model.config.get_text_config())
    logits(model, prompt, past_key_values=cache, use_cache=True)
    (one,) = vtc.report(model).pictures
    words = prompt["input_ids"].shape[1] - one.tokens_in
    assert [layer.keys.shape[2] - words for layer in cache.layers] == one.tokens_by_layer
    assert one.average <= SPECS[spec] * one.tokens_in
    first, part = engine(model).freezes_at, method.stages()[-1].running
    (before,) = engine(model).current.remaining.count
    behind = 0 if before == 1 else min(before - 1, math.ceil(part * before))
    want = [0 if n in method.rest else before if n < first else behind for n in range(LAYERS)]
    assert one.rows_by_layer == want or spec == CUT_BETWEEN and one.rows_by_layer[first:] == want[first:]
    means = [
        plan.candidates is not None and plan.candidates.with_mean[0] and plan.chosen is not None
        for _, plan in sorted(engine(model).current.plans.items())
    ]
    assert [len(keys) + mean for keys, mean in zip(one.chosen, means, strict=True)] == one.tokens_by_layer
    assert sum(one.layers_as_key) == sum(map(len, one.chosen))


def test_how_often_a_key_comes_back():
    picture = Picture(0, 4, [4, 2, 2, 2], [], [0, 1, 2, 3], chosen=[[0, 1], [0, 1], [1, 3]])
    assert picture.layers_as_key == [2, 3, 0, 1] and picture.returned == 0.25


def test_a_token_that_is_a_key_is_not_in_the_mean_of_the_others():
    """Also where another prompt has more keys, so that places are left empty; trap: they are filled with token 0."""
    x = torch.randn(2, 1, 40, 4, dtype=torch.float64)
    candidates = Stored(Columns(torch.arange(40).expand(2, -1)), x, x)
    chosen = torch.tensor([list(range(9)), [*range(8), -1]])
    out = chosen_of(candidates, chosen, Quota.of([10, 9], [40, 40], chosen.device))
    for prompt, keys in enumerate((9, 8)):
        assert_close("mean", out.keys[prompt, 0, -1], x[prompt, 0, keys:].mean(dim=0))
        assert out.columns.log_size[prompt, -1].exp().round() == 40 - keys


@pytest.mark.parametrize("spec", ["frozen", "adaptive:layer=2", "perceiver:layer=2", CUT_BETWEEN])
def test_gradients_are_those_of_the_masked_model_with_and_without_replays(spec):
    def gradient(how: str) -> dict:
        model = zoo.build("llava", dtype=torch.float64).train()
        prompt = zoo.prompt(model, 1)
        vtc.patch(model, build(spec), SPECS.get(spec, 0.1))
        if how == "replayed whole":  # as FSDP and older transformers do: what chooses runs again, behind later cuts
            layers = family_of(model).decoder.layers
            for index, layer in enumerate(layers):
                layers[index] = checkpoint_wrapper(layer)
            model.enable_input_require_grads()
        if how == "replayed":
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        labels = prompt["input_ids"].clone()
        labels[:, :-3] = -100
        if how == "masked":
            logits(model, prompt, labels=labels)
            own = engine(model)
            gone, sizes, cuts, still = dropped_rows(own), log_sizes(own), cuts_of(own), stops(model)
            keys = chosen(model, labels.shape[1])
            vtc.unpatch(model)
            with restored(model, still), merged_input(model, cuts, True), masked(model, gone, sizes):
                with choosing(model, keys):
                    model(**prompt, labels=labels, use_cache=False).loss.backward()
        else:
            model(**prompt, labels=labels, use_cache=False).loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    want = gradient("forward")
    assert any("vision_tower" in name for name in want)
    for how in ("replayed", "replayed whole"):
        got = {name.replace("_checkpoint_wrapped_module.", ""): grad for name, grad in gradient(how).items()}
        assert got.keys() == want.keys()
        for name, grad in want.items():
            assert_close(f"{how}: {name}", got[name], grad)
    for name, grad in gradient("masked").items() if "perceiver" not in spec else ():
        assert_close(name, want[name], grad)


def test_reentrant_checkpointing_would_lose_gradients_and_raises():
    model = zoo.build("llava").train()
    vtc.patch(model, "frozen", 1.0)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.enable_input_require_grads()
    with pytest.raises(UnsupportedModel, match="use_reentrant"):
        model(**zoo.prompt(model, 1), use_cache=False)


def test_words_beside_pictures_and_words_alone_in_one_batch(model_of):
    """A prompt without a picture has no tokens that stop: what fills its place weighs nothing."""
    model = model_of("llava")
    prompts = [zoo.prompt(model, 2, seed=1), zoo.prompt(model, 0, seed=2, before=20), zoo.prompt(model, 1, seed=3)]
    vtc.patch(model, "adaptive", 0.12)
    together = zoo.batch(prompts)
    got = logits(model, together)[:, -1]
    for row, prompt in enumerate(prompts):
        assert_close(f"prompt {row}", got[row], logits(model, prompt)[0, -1])


def test_hidden_states_of_every_layer_are_full_and_change_nothing(model_of):
    model = model_of("llava", dtype=torch.float64)
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, "adaptive", 0.12)
    want = logits(model, prompt)
    with torch.no_grad():
        out = model(**prompt, output_hidden_states=True)
    assert_close("logits", out.logits, want)
    assert {h.shape[1] for h in out.hidden_states} == {prompt["input_ids"].shape[1]}


def test_a_second_picture_in_a_later_turn_has_keys_beside_those_of_the_first(model_of):
    model = model_of("llava", dtype=torch.float64)
    first, second = zoo.prompt(model, 1, seed=1), zoo.prompt(model, 1, seed=2)
    vtc.patch(model, "adaptive", 0.12)
    cache = DynamicCache(config=model.config.get_text_config())
    logits(model, first, past_key_values=cache, use_cache=True)
    held = [layer.keys.shape[2] for layer in cache.layers]
    mask = torch.cat([first["attention_mask"], second["attention_mask"]], dim=1)
    logits(model, {**second, "attention_mask": mask}, past_key_values=cache, use_cache=True)
    (one,) = vtc.report(model).pictures
    words = second["input_ids"].shape[1] - one.tokens_in
    more = [layer.keys.shape[2] - old - words for layer, old in zip(cache.layers, held, strict=True)]
    assert more == one.tokens_by_layer


def test_the_least_budget_is_said_in_keys(model_of):
    """Cuts inside the decoder meet the candidates' budget; what is raised, and stands in tables, is the user's."""
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)  # 36 tokens, all of them in two of four layers: 19 candidates at least
    vtc.patch(model, "fastv:layer=2/frozen:layer=3:candidates=4", budget=4)
    with pytest.raises(BudgetError, match=r"leave 19 of 36 at least.* least budget is 5 tokens, and 4 were") as error:
        logits(model, prompt)
    assert error.value.least == 5
    vtc.patch(model, "fastv:layer=2/frozen:layer=3:candidates=4", budget=5)
    logits(model, prompt)
    assert 0 < vtc.report(model).average_tokens <= 5


def test_a_prompt_that_ends_with_its_picture_raises(model_of):
    model = model_of("llava")
    vtc.patch(model, "frozen", 1.0)
    with pytest.raises(UnsupportedModel, match="ends with its picture"):
        logits(model, zoo.prompt(model, 1, after=0))


def test_where_tokens_cannot_stop(model_of):
    with pytest.raises(UnsupportedModel, match="recurrent"):
        vtc.patch(model_of(HYBRID), "frozen", 1.0)
    with pytest.raises(UnsupportedModel, match="adds features"):
        vtc.patch(model_of("qwen3_vl"), "frozen", 1.0, layer=1)
    with pytest.raises(ValueError, match=r"candidates=0.5 is no number of times the budget from 1 on"):
        Frozen(candidates=0.5)
    with pytest.raises(ValueError, match="running=1 is no part of the candidates"):
        Frozen(running=1)
    with pytest.raises(ValueError, match="share=True needs a stage at the decoder's input"):
        Frozen(layer=0, share=True)  # what stops is a key of its own: merged, too, it would weigh twice
    with pytest.raises(ValueError, match="let it be the last"):
        build("frozen/fastv")
