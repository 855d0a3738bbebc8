"""Block by block equals all at once, on every family, with and without a token patch."""

import pytest
import torch

import vtc
from tests import zoo
from vtc.errors import WeightsError
from vtc.methods._spelling import build
from vtc.models import family_of
from vtc.weights.calibration.block_walk import Recorder, Walk
from vtc.weights.calibration.token_weighting import by_gradient, weigher
from vtc.weights.select import block_of, layers_of

PATCHES = (None, "divprune", "fastv", "router", "divprune:rest=[1,3]")


def examples_of(model):
    return [zoo.prompt(model, pictures=1), zoo.prompt(model, pictures=2)]


def blocks_of(model, layers):
    found = {}
    for name, layer in layers.items():
        found.setdefault(block_of(name, model, family_of(model)), {})[name] = layer
    return found


def at_once(model, examples, layers):
    """The Grams of every layer from plain forwards with hooks on all of them."""
    walk, found = Walk(model, examples), {}
    for block, inside in layers.items():
        recorder = Recorder(inside)
        for n, example in enumerate(examples):
            with recorder.on(), torch.no_grad():
                recorder.labels = lambda n=n, block=block: walk.labels(n, block)
                model(**example, use_cache=False)
        found |= recorder.found()
    return found


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("name", zoo.NAMES)
def test_blocks_see_what_they_see_in_one_forward(model_of, name, patch):
    model = model_of(name)
    if patch not in (None, "divprune") and family_of(model).hybrid:
        pytest.skip("recurrent decoder layers are cut at the input only")
    examples = examples_of(model)
    if patch:
        vtc.patch(model, build(patch), budget=0.6)
    layers = blocks_of(model, layers_of(model, family_of(model)))
    want = at_once(model, examples, layers)
    walk = Walk(model, examples)
    for block in range(walk.depth):
        got = walk.see(block, layers.get(block, {}))
        walk.step(block)
        for layer, buckets in got.items():
            for kind, gram in buckets.items():
                assert gram.count == want[layer][kind].count, (layer, kind)
                assert torch.equal(gram.moment, want[layer][kind].moment), (layer, kind)
    assert not [m for m in model.modules() if "forward" in m.__dict__ and patch is None]


def test_a_change_is_carried_along(model_of):
    """The negative control: what a block sees moves when one before it has changed."""
    model = model_of("llava")
    examples = examples_of(model)
    layers = blocks_of(model, layers_of(model, family_of(model)))
    weight = next(iter(layers[0].values())).weight
    walk = Walk(model, examples)
    before = walk.see(1, layers[1])
    kept = weight.detach().clone()
    try:
        weight.data *= 1.5
        walk.step(0)
        after = walk.see(1, layers[1])
    finally:
        weight.data.copy_(kept)
    for name in before:
        assert not torch.allclose(before[name]["text"].moment, after[name]["text"].moment, rtol=1e-3)


def test_vision_and_text_rows_are_told_apart(model_of):
    model = model_of("llava")
    example = zoo.prompt(model, pictures=1)
    layers = blocks_of(model, layers_of(model, family_of(model)))
    walk = Walk(model, [example])
    seen = walk.see(0, layers[0])
    pictures = int((example["input_ids"] == model.config.image_token_id).sum())
    for buckets in seen.values():
        assert buckets["vision"].count == pictures
        assert buckets["text"].count == example["input_ids"].shape[1] - pictures
        gram = weigher("balanced", walk)(0, buckets)
        assert gram.count == pytest.approx(example["input_ids"].shape[1])
        assert weigher("pooled", walk)(0, buckets).count == example["input_ids"].shape[1]
        assert weigher((0.0, 1.0), walk)(0, buckets).count == buckets["text"].count
        torch.testing.assert_close(weigher((0.0, 1.0), walk)(0, buckets).moment, buckets["text"].moment)


@pytest.mark.parametrize("patch", [None, "divprune"])
def test_gradients_say_what_a_token_is_worth(model_of, patch):
    """The last row is text and the loss is read there: after the last block no vision token matters at all."""
    model = model_of("llava")
    if patch:
        vtc.patch(model, patch, budget=4)
    found = by_gradient(Walk(model, examples_of(model)))
    assert len(found) == len(model.model.language_model.layers)
    assert all(vision > 0 and text > 0 for vision, text in found[:-1])
    assert found[-1][0] == 0 and found[-1][1] > 0
    assert all(p.grad is None for p in model.parameters())


def test_padding_is_left_out(model_of):
    model = model_of("llava")
    short, long = zoo.prompt(model, pictures=0), zoo.prompt(model, pictures=1)
    layers = blocks_of(model, layers_of(model, family_of(model)))
    apart = Walk(model, [short, long]).see(0, layers[0])
    together = Walk(model, [zoo.batch([short, long])]).see(0, layers[0])
    for name in apart:
        for kind in ("vision", "text"):
            assert apart[name][kind].count == together[name][kind].count
            torch.testing.assert_close(apart[name][kind].moment, together[name][kind].moment, rtol=1e-4, atol=1e-4)


def test_inputs_are_shared(model_of):
    model = model_of("llava")
    layers = blocks_of(model, layers_of(model, family_of(model)))
    seen = Walk(model, examples_of(model)).see(0, layers[0])
    by_end = {name.rpartition(".")[2]: buckets for name, buckets in seen.items()}
    assert by_end["q_proj"] is by_end["k_proj"] is by_end["v_proj"] and by_end["gate_proj"] is by_end["up_proj"]
    assert by_end["q_proj"] is not by_end["o_proj"] and by_end["up_proj"] is not by_end["down_proj"]


@pytest.mark.parametrize("part", ["tower", "projector", "lm_head"])
def test_outside_the_decoder(model_of, part):
    model = model_of("llava")
    layers = layers_of(model, family_of(model), [part])
    seen = Walk(model, examples_of(model)).see("after" if part == "lm_head" else "before", layers)
    assert set(seen) == set(layers)
    assert all(b["vision"].count > 0 for b in seen.values())
    assert all(bool(b["text"].count) == (part == "lm_head") for b in seen.values())


def test_bad_examples(model_of):
    model = model_of("llava")
    with pytest.raises(WeightsError, match="empty"):
        Walk(model, [])
    layers = blocks_of(model, layers_of(model, family_of(model)))
    with pytest.raises(WeightsError, match="input_ids"):
        embeds = torch.zeros(1, 4, model.config.text_config.hidden_size)
        Walk(model, [{"inputs_embeds": embeds, "attention_mask": torch.ones(1, 4)}]).see(0, layers[0])
