"""Rows that skip a layer: equal to a slow reference that masks and restores them, in prefill, decode and training."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

import vtc
from tests import zoo
from tests.reference import before_norm, dropped_rows, equals_the_whole, longer, masked, restored
from tests.support import KINDS, SKIPPING, engine, exact_dtype, generate, logits, served
from tests.tolerances import assert_close
from vtc.errors import BudgetError
from vtc.models import family_of

each = pytest.mark.parametrize("method", SKIPPING)
families = served("router")


@each
@families
def test_skipping_equals_masking_and_putting_back(family, method, model_of):
    model = model_of(family, dtype=exact_dtype(family))
    prompt = zoo.prompt(model, 2)
    vtc.patch(model, method, budget=0.5)
    with before_norm(model) as seen:
        logits(model, prompt)
    gone = dropped_rows(engine(model))
    vtc.unpatch(model)
    assert sorted(gone) == [1, 2, 3] and all(drop.any() for drop in gone.values())
    assert not torch.equal(gone[1], gone[3]), "no row ever came back, so the check proves little"
    with before_norm(model) as want, masked(model, gone), restored(model, gone):
        logits(model, prompt)
    assert_close("all rows", seen[0], want[0])
    with before_norm(model) as control, masked(model, gone):  # rows that do not skip what they are not seen in
        logits(model, prompt)
    assert (control[0] - seen[0])[:, -1].abs().max() > 1e-4


@each
@pytest.mark.parametrize("family", [f for f in KINDS if f != "paligemma"])  # it reads one forward as a prefix
def test_decoding_after_skipping_equals_the_whole_sequence(family, method, model_of):
    model = model_of(family, dtype=exact_dtype(family))
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, method, budget=0.5)
    logits(model, prompt)
    gone = dropped_rows(engine(model))
    out = generate(model, prompt, tokens=12, suppress_tokens=list(family_of(model).token_ids.values()))
    vtc.unpatch(model)
    gone = longer(gone, out.sequences.shape[1] - 1)
    with masked(model, gone), restored(model, gone):
        equals_the_whole(model, prompt, out)


@each
def test_the_cache_holds_the_rows_that_ran_and_the_report_counts_them(method, model_of):
    model = model_of("llava")
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, method, budget=0.5)
    cache = DynamicCache(config=model.config.get_text_config())
    logits(model, prompt, past_key_values=cache, use_cache=True)
    (one,) = vtc.report(model).pictures
    words = prompt["input_ids"].shape[1] - one.tokens_in
    assert [layer.keys.shape[2] - words for layer in cache.layers] == one.tokens_by_layer
    assert one.average == one.tokens_in // 2 and one.tokens_by_layer[0] == one.tokens_in
    assert cache.get_seq_length() == prompt["input_ids"].shape[1]


def test_a_schedule_moves_tokens_between_layers(model_of):
    model = model_of("llava")
    vtc.patch(model, "router", budget=0.5, schedule=(3, 2, 1))
    logits(model, zoo.prompt(model, 1))
    (one,) = vtc.report(model).pictures
    _, a, b, c = one.tokens_by_layer
    assert a > b > c and one.average == one.tokens_in // 2


def test_training_runs_the_hard_path():
    model = zoo.build("llava", dtype=torch.float64)
    prompt = zoo.batch([zoo.prompt(model, n, seed=n) for n in (1, 2)])
    vtc.patch(model, "router", budget=0.4)
    want = logits(model, prompt)
    got = model.train()(**prompt)
    assert got.logits.requires_grad and torch.equal(got.logits.detach(), want)


def test_bad_options_are_refused(model_of):
    model = model_of("llava")
    with pytest.raises(ValueError, match="back in the next layer"):
        vtc.patch(model, "router", layer=0, share=True)
    with pytest.raises(ValueError, match="2 entries and 3 layers route"):
        vtc.patch(model, "router", schedule=(1, 2))
    for bad in ((1, 0, 1), ("a",), (float("nan"),), 3):
        with pytest.raises(ValueError, match="numbers above 0"):
            vtc.methods.Router(schedule=bad)
    with pytest.raises(ValueError, match="come back in the next"):
        vtc.methods.Combined(methods=(vtc.methods.DivPrune(), vtc.methods.Router()))
    vtc.patch(model, "router", budget=4)
    with pytest.raises(BudgetError, match="first 1 of 4 layers"):
        logits(model, zoo.prompt(model, 1))
