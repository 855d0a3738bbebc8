"""The key/value site: reduced attention equals a slow reference, at prefill, decode and in a second turn."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import vtc
from tests import zoo
from tests.engine.attention.test_attend import answers, route  # noqa: F401  # a fixture
from tests.patching.test_refusals import flash  # noqa: F401  # a fixture
from tests.reference import before_norm, equals_the_whole, regrouped
from tests.support import KEYS, KINDS, engine, exact_dtype, generate, logits, served
from tests.tolerances import assert_close
from vtc.budget.schedule import allot
from vtc.errors import UnsupportedModel
from vtc.models import family_of

each = pytest.mark.parametrize("method", KEYS)
families = served("act")


def cuts_of(model) -> dict:
    """By decoder layer what the last forward's attention left of its keys."""
    return {index: plan.keys for index, plan in engine(model).current.plans.items() if plan.keys is not None}


@each
@families
def test_reduced_keys_equal_a_loop_over_groups(family, method, model_of):
    model = model_of(family, dtype=exact_dtype(family))
    prompt = zoo.prompt(model, 2)
    vtc.patch(model, method, budget=0.5)
    with before_norm(model) as seen:
        logits(model, prompt)
    cuts = cuts_of(model)
    vtc.unpatch(model)
    assert cuts and all(cut.rows.shape[1] < prompt["input_ids"].shape[1] for cut in cuts.values())
    with before_norm(model) as want, regrouped(model, cuts):
        logits(model, prompt)
    assert_close("all rows", seen[0], want[0])
    with before_norm(model) as control:
        logits(model, prompt)
        with regrouped(model, cuts, merging=False):
            logits(model, prompt)
    assert (control[0] - seen[0])[:, -1].abs().max() > 1e-3
    merges = any(cut.reduction.merges for cut in cuts.values())
    assert bool((control[1] - seen[0])[:, -1].abs().max() > 1e-3) is merges


@each
@pytest.mark.parametrize("family", [f for f in KINDS if f != "paligemma"])  # it reads one forward as a prefix
def test_decoding_on_reduced_keys_equals_the_whole_sequence(family, method, model_of):
    model = model_of(family, dtype=exact_dtype(family))
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, method, budget=0.5)
    logits(model, prompt)
    cuts = cuts_of(model)
    out = generate(model, prompt, tokens=24, suppress_tokens=list(family_of(model).token_ids.values()))
    vtc.unpatch(model)
    with regrouped(model, cuts):
        equals_the_whole(model, prompt, out)


@each
@pytest.mark.parametrize("family", [f for f in KINDS if f != "paligemma"])
def test_a_second_turn_on_reduced_keys(family, method, model_of):
    """A follow-up question on the cache = the same tokens one by one; positions go on from the logical length."""
    model = model_of(family)
    prompt, more = zoo.prompt(model, 1), torch.tensor([zoo.words(5, seed=9)])
    vtc.patch(model, method, budget=0.4)
    ends = []
    for chunks in ([more], list(more.split(1, dim=1))):
        cache = DynamicCache(config=model.config.get_text_config())
        with torch.no_grad():
            model(**prompt, past_key_values=cache, use_cache=True)
            for chunk in chunks:
                ends.append(model(input_ids=chunk, past_key_values=cache, use_cache=True).logits[:, -1])
    assert_close("last word", ends[0], ends[-1])
    assert cache.get_seq_length() == prompt["input_ids"].shape[1] + 5


def test_a_second_picture_on_reduced_keys(model_of):
    """The cache of an earlier turn stays as it was reduced then; two turns = both pictures in one prompt, where each
    picture is reduced by itself."""
    model = model_of("llava")
    both = zoo.prompt(model, 2, between=3)
    vtc.patch(model, "kvmerge", budget=0.4)  # act ranks by the last row, which two turns do not share
    want = logits(model, both)[:, -1]
    split = int((both["input_ids"][0] == model.config.image_token_id).nonzero()[35]) + 1
    cache = DynamicCache(config=model.config.get_text_config())
    with torch.no_grad():
        for part, pixels in zip(both["input_ids"].tensor_split([split], dim=1), both["pixel_values"], strict=True):
            out = model(input_ids=part, pixel_values=pixels[None], past_key_values=cache, use_cache=True)
    assert_close("last word", out.logits[:, -1], want)


@each
def test_layers_differ_and_spend_the_budget_to_the_last_key(method):
    model = zoo.build("llava", layers=8)
    projections = family_of(model).layers[3].self_attn
    with torch.no_grad():  # attention that singles out a few, keys that are nearly alike
        projections.q_proj.weight.mul_(20)
        projections.k_proj.bias = torch.nn.Parameter(torch.full_like(projections.k_proj.weight[:, 0], 5.0))
    vtc.patch(model, method, budget=12)
    logits(model, zoo.prompt(model, 2))
    for picture in vtc.report(model).pictures:
        assert sum(picture.tokens_by_layer) == 12 * 8
        *before, here = picture.tokens_by_layer[:4]
        assert here > max(before) if method == "kvmerge" else here < min(before)


@each
def test_fused_operations_answer_as_the_mask_does(method, model_of, route):  # noqa: F811
    model = model_of("llava")
    vtc.patch(model, method, budget=0.4)
    assert route("mask") == []
    want = answers(model)
    calls = route("fused")
    got = answers(model)
    assert "merged_attention" in calls
    for name, value in want.items():
        assert_close(name, got[name], value)


def test_flash_attention_without_the_kernel_raises(flash):  # noqa: F811
    model = zoo.build("llava")
    model.set_attn_implementation({"text_config": "made_up_flash", "vision_config": "sdpa"})
    vtc.patch(model, "act", budget=0.5)
    with pytest.raises(UnsupportedModel, match="sdpa"):
        logits(model, zoo.prompt(model, 1))


def test_a_prompt_that_begins_with_its_picture_raises_where_its_first_row_sees_nothing(model_of):
    model = model_of("llava")
    vtc.patch(model, "act", budget=10)
    prompt = zoo.prompt(model, 1, before=0)
    with pytest.raises(UnsupportedModel, match="begin prompts with a word"):
        logits(model, prompt)
    logits(model, zoo.prompt(model, 1, before=1))


def test_act_keeps_what_eager_attention_shows(model_of):
    """An independent check of signal and rows: attention maps of the unpatched model, ranked in plain Python."""
    model = model_of("llava", attn="eager")
    prompt = zoo.batch([zoo.prompt(model, n, seed=n) for n in (1, 2)])
    with torch.no_grad():
        attention = model(**prompt, output_attentions=True).attentions
    for of, layer in (("own", 1), ("previous", 0)):
        vtc.patch(model, "act", budget=0.5, layer=1, of=of)
        logits(model, prompt)
        layout, cut = engine(model).current.layout, cuts_of(model)[1]
        score = attention[layer].mean(dim=1)[:, -1]
        for i, prompt_of in enumerate(layout.prompts):
            seen = score[prompt_of, layout.row[i, : layout.count[i]]]
            best = seen.argsort(descending=True)[: cut.keep[i]].sort().values
            assert cut.reduction.anchor[i, : cut.keep[i]].tolist() == best.tolist()


@pytest.mark.parametrize(("needs", "full"), [([1, 9, 1, 1], 20), ([5, 0, 0, 0], 20), ([1, 1, 1, 1], 6), ([0] * 4, 8)])
def test_allotments_add_up(needs, full):
    for total in range(4, 4 * full + 1):
        left, given = total, []
        for layer, need in enumerate(needs):
            given.append(allot(left, [1.0] * (4 - layer), full, need, sum(needs[: layer + 1]) / (layer + 1)))
            left -= given[-1]
        assert left == 0 and all(1 <= n <= full for n in given)


def test_what_reduces_keys_is_not_combined_with_what_drops_rows():
    with pytest.raises(ValueError, match="act reduces keys"):
        vtc.methods.Combined(methods=(vtc.methods.Act(), vtc.methods.FastV()))
    with pytest.raises(ValueError, match="an int from 1"):
        vtc.methods.Act(of="previous")
    with pytest.raises(ValueError, match="'own' or 'previous'"):
        vtc.methods.Act(of="last", layer=1)
