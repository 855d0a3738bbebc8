"""``vtc.calibrate``: what is closer to the unpatched model than the uncalibrated rule, by more than chance."""

import math

import pytest
import torch
from tqdm import tqdm

import vtc
from tests import zoo
from tests.support import logits
from vtc.methods import Adaptive
from vtc.patching.calibration import Tries, by_cost_of_rest, closest, elsewhere


def some_prompts(model, count=3):
    return [zoo.prompt(model, 1, seed=n) for n in range(count)]


def test_it_takes_what_is_closer_on_prompts_it_did_not_search_and_leaves_the_model_alone(monkeypatch):
    """The rest of the search is a list of tries; what they are worth is told here."""
    model = zoo.build("llava", layers=6)
    prompts = some_prompts(model, 8)
    before = [logits(model, p) for p in prompts]
    other = Adaptive(layer=3, candidates=2.0)
    worth = {Adaptive(): [1.0] * 8, other: [0.5] * 8}

    def told(tries, method, budget=None):
        return torch.tensor(worth.get(method, [9.0] * 8))

    monkeypatch.setattr(Tries, "divergences", told)
    given = dict(budget=0.2, layers=(3,), candidates=(2.0,), rest=(), progress=False)
    assert vtc.calibrate(model, prompts, **given) == other
    worth[other] = [0.5, 1.5] * 4  # closer where it was searched, farther where it was not
    assert vtc.calibrate(model, prompts, **given) == Adaptive()
    worth[other] = [0.5, 1.0] * 4
    assert vtc.calibrate(model, prompts, **given) == Adaptive()
    assert all(torch.equal(logits(model, p), want) for p, want in zip(prompts, before, strict=True))


def test_the_divergence_is_that_of_the_next_token():
    model = zoo.build("llava", layers=6)
    prompts = some_prompts(model, 3)
    want = [logits(model, p)[:, -1].log_softmax(-1) for p in prompts]
    with vtc.patched(model, Adaptive(), budget=0.2):
        got = [logits(model, p)[:, -1].log_softmax(-1) for p in prompts]
    each = [float((w.exp() * (w - g)).sum()) for w, g in zip(want, got, strict=True)]
    tries = Tries(model, prompts, 0.2, tqdm(disable=True))
    assert tries.divergences(Adaptive()).tolist() == pytest.approx(each, rel=1e-4)
    assert tries.distance(Adaptive()) == pytest.approx((each[0] + each[2]) / 2, rel=1e-4)


def test_tokens_rest_first_where_that_costs_nothing():
    model = zoo.build("llava", layers=6, dtype=torch.float64)
    for layer in (1, 4):  # what it adds to the states is nothing, so resting there only buys keys elsewhere
        block = model.model.language_model.layers[layer]
        block.self_attn.o_proj.weight.data.zero_()
        block.mlp.down_proj.weight.data.zero_()
    tries = Tries(model, some_prompts(model, 6), 0.2, tqdm(disable=True))
    assert set(by_cost_of_rest(tries, Adaptive(), range(6))[:2]) == {1, 4}
    assert closest(tries, [Adaptive(), Adaptive(layer=2, candidates=4.0)], [0.33], (), 6).rest == ()


def test_what_holds_elsewhere_is_said(capsys):
    model = zoo.build("llava", layers=6)
    tries = Tries(model, some_prompts(model, 4), 4, tqdm(disable=True))
    lines = list(elsewhere(tries, Adaptive(layer=3), Adaptive()))
    assert [line.split(":")[0] for line in lines] == ["at 2", "at 8", "at 16"]
    assert all("the uncalibrated one" in line for line in lines)


@pytest.mark.parametrize("method", ["divprune", "act", "perceiver"])
@pytest.mark.parametrize("how", ["calibrate", "calibrate_spend", "without prompts"])
def test_a_patch_that_is_on_has_no_part_in_it_and_stays_on(how, method, model_of):
    model = model_of("llava")
    prompts = some_prompts(model)

    def found():
        if how == "calibrate_spend":
            return vtc.calibrate_spend(model, prompts, budget=0.2, progress=False)
        given = [] if how == "without prompts" else prompts
        try:
            return vtc.calibrate(model, given, budget=0.2, layers=(1, 2), candidates=(2.0,), rest=(), progress=False)
        except ValueError as error:
            return str(error)

    plain = found()
    vtc.patch(model, method, budget=0.4)
    patch, want = vtc.patch_of(model), logits(model, prompts[0])
    assert found() == plain
    assert vtc.patch_of(model) is patch
    assert torch.equal(logits(model, prompts[0]), want)


def test_recurrent_decoders_get_no_second_cut():
    model = zoo.build("qwen3_5")
    assert vtc.calibrate(model, some_prompts(model, 1), budget=0.5, progress=False) == Adaptive(layer=None)
    assert vtc.patch_of(vtc.patch(model)).method == Adaptive(layer=None)


def test_the_default_is_adaptive_and_is_saved_with_the_model(tmp_path):
    model = vtc.patch(zoo.build("llava"))
    assert vtc.patch_of(model).method == Adaptive()
    assert vtc.patch_of(vtc.patch(model, layer=2)).method == Adaptive(layer=2), "options go to the default, too"
    vtc.patch(model, Adaptive(layer=2, candidates=3.0), budget=0.3)
    vtc.save(model, tmp_path)
    assert vtc.patch_of(vtc.load(tmp_path)).method == Adaptive(layer=2, candidates=3.0)


def test_bad_input():
    model = zoo.build("llava")
    with pytest.raises(ValueError, match="needs prompts"):
        vtc.calibrate(model, [])
    prompt = zoo.batch([zoo.prompt(model, 1), zoo.prompt(model, 2)])
    right = {**prompt, "attention_mask": prompt["attention_mask"].flip(1)}
    with pytest.raises(ValueError, match="padded on the right"):
        vtc.calibrate(model, [right], progress=False)


@pytest.mark.parametrize(
    "option",
    [
        {"layer": 0},
        {"layer": 0.0},
        {"candidates": 0},
        {"candidates": 0.5},
        {"candidates": True},
        {"candidates": math.inf},
    ],
)
def test_bad_options(option):
    with pytest.raises(ValueError, match="adaptive: .*give"):
        Adaptive(**option)
