"""``vtc.calibrate``: the second cut whose answers stay closest to the unpatched model's."""

import pytest
import torch

import vtc
from tests import zoo
from tests.support import logits
from vtc.methods import Adaptive
from vtc.patching.calibration import spread


def some_prompts(model, count=3):
    return [zoo.prompt(model, 1, seed=n) for n in range(count)]


def test_it_names_the_closest_cut_and_leaves_the_model_alone():
    model = zoo.build("llava", layers=6)
    prompts = some_prompts(model)
    before = [logits(model, p) for p in prompts]
    found = vtc.calibrate(model, prompts, budget=0.2, layers=(1, 4), narrow=(0.3,), rest=(), progress=False)
    assert all(torch.equal(logits(model, p), want) for p, want in zip(prompts, before, strict=True))

    def distance(method):
        with vtc.patched(model, method, budget=0.2):
            got = [logits(model, p)[:, -1].log_softmax(-1) for p in prompts]
        wanted = [want[:, -1].log_softmax(-1) for want in before]
        return sum((w.exp() * (w - g)).sum() for w, g in zip(wanted, got, strict=True)).item()

    candidates = [Adaptive(layer=None), Adaptive(layer=1, narrow=0.3), Adaptive(layer=4, narrow=0.3)]
    assert found == min(candidates, key=distance)
    assert len({round(distance(c), 9) for c in candidates}) == 3, "the cuts differ, or the choice proves nothing"


def test_tokens_rest_where_that_costs_nothing():
    model = zoo.build("llava", layers=6, dtype=torch.float64)
    for layer in (1, 4):  # what it adds to the states is nothing, so resting there only buys tokens elsewhere
        block = model.model.language_model.layers[layer]
        block.self_attn.o_proj.weight.data.zero_()
        block.mlp.down_proj.weight.data.zero_()
    prompts = some_prompts(model)
    found = vtc.calibrate(model, prompts, budget=0.2, layers=(2,), narrow=(0.3,), progress=False)
    assert set(found.rest) >= {1, 4}
    assert vtc.patch_of(vtc.patch(model, found, 0.2)).method == found
    vtc.unpatch(model)
    assert vtc.calibrate(model, prompts, budget=0.2, layers=(2,), rest=(1,), progress=False).rest == (1,)


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
            return vtc.calibrate(model, given, budget=0.2, layers=(1, 2), narrow=(0.3,), rest=(), progress=False)
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
    assert vtc.patch_of(model).method == Adaptive(layer=None)
    assert vtc.patch_of(vtc.patch(model, layer=2)).method == Adaptive(layer=2), "options go to the default, too"
    vtc.patch(model, Adaptive(layer=2, narrow=0.5), budget=0.3)
    vtc.save(model, tmp_path)
    assert vtc.patch_of(vtc.load(tmp_path)).method == Adaptive(layer=2, narrow=0.5)


def test_bad_input():
    model = zoo.build("llava")
    with pytest.raises(ValueError, match="needs prompts"):
        vtc.calibrate(model, [])
    prompt = zoo.batch([zoo.prompt(model, 1), zoo.prompt(model, 2)])
    right = {**prompt, "attention_mask": prompt["attention_mask"].flip(1)}
    with pytest.raises(ValueError, match="padded on the right"):
        vtc.calibrate(model, [right], progress=False)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 28, 32, 80])
def test_candidates_span_two_thirds_of_the_depth(depth):
    layers = spread(depth)
    assert len(layers) <= 12 and layers[0] >= 1 and layers[-1] <= max(1, 2 * depth // 3)
    assert layers == sorted(set(layers))


@pytest.mark.parametrize("option", [{"layer": 0}, {"layer": 0.0}, {"narrow": 0}, {"narrow": 1.5}, {"narrow": True}])
def test_bad_options(option):
    with pytest.raises(ValueError, match="adaptive: .*give"):
        Adaptive(**option)


@pytest.mark.slow
def test_on_the_testbed_it_finds_the_layer_that_the_ablation_found():
    """docs/adaptive.md: on the dev seeds layer 3 is the one, far ahead of its neighbours."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from vtc.eval import scenes

    path = scenes.checkpoint_path()
    model, processor = AutoModelForImageTextToText.from_pretrained(path).eval(), AutoProcessor.from_pretrained(path)
    asked = scenes.samples("dev", 24, seed=5)
    prompts = [dict(processor(images=s.image, text=s.prompt, return_tensors="pt")) for s in asked]
    assert vtc.calibrate(model, prompts, layers=range(1, 6), narrow=(0.3,), progress=False).layer == 3
