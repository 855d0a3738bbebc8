"""What the training of the testbed's models computes is what transformers computes with the exported folder."""

import numpy as np
import pytest
import torch

from vtc.eval.scenes import samples
from vtc.eval.scenes.train.architectures import registry
from vtc.eval.scenes.train.export import export
from vtc.eval.scenes.train.measure import accuracy
from vtc.eval.scenes.train.model import START, TOKENS

KINDS = {name: kind() for name, kind in registry.items()}


@pytest.fixture(scope="module", params=sorted(KINDS))
def trained(request, tmp_path_factory):
    """A kind of model, one of it with random weights, and its folder's processor."""
    from transformers import AutoProcessor

    if request.param == "qwen":
        pytest.importorskip("torchvision")  # transformers' video processor
    torch.manual_seed(0)
    kind, folder = KINDS[request.param], tmp_path_factory.mktemp("train") / request.param
    model = kind.build().eval()
    export(kind, model, folder)
    return kind, model, AutoProcessor.from_pretrained(folder)


@pytest.fixture(scope="module")
def items():
    return list(samples("dev", 9))


def batch(processor, items):
    images, texts = [s.image for s in items], [s.prompt for s in items]
    return processor(images=images, text=texts, padding=True, return_tensors="pt")


@torch.no_grad()
def test_vision_tokens_are_those_of_the_exported_folder(trained, items):
    kind, model, processor = trained
    pixels = torch.from_numpy(np.stack([np.asarray(s.image) for s in items]))
    ours = kind.project(model, kind.features(model, pixels))
    inputs = batch(processor, items)
    pictures = {k: v for k, v in inputs.items() if k in ("pixel_values", "image_grid_thw")}
    theirs = torch.stack(list(model.get_image_features(**pictures).pooler_output))
    assert ours.shape == (len(items), TOKENS, 128)
    torch.testing.assert_close(ours, theirs.reshape(ours.shape))
    assert not torch.allclose(ours, ours.flip(1)), "the order of the tokens must show"


@torch.no_grad()
def test_positions_are_those_the_model_computes(trained, items):
    kind, model, processor = trained
    inputs = batch(processor, items[:1])
    length = inputs["input_ids"].shape[1]
    assert (inputs["input_ids"][0, START : START + TOKENS] == 4).all()
    whole = model(**inputs).logits
    seen = kind.positions(torch.arange(length)[None])
    torch.testing.assert_close(model(**inputs, position_ids=seen).logits, whole)
    turned = kind.positions(torch.arange(length)[None].flip(1))
    assert not torch.allclose(model(**inputs, position_ids=turned).logits, whole)


def test_accuracy_of_an_untrained_model_is_low_but_counted(trained, items):
    kind, model, processor = trained
    right = accuracy(model, processor, items)
    assert 0 <= right["one_hop"] <= 1 and set(right) >= {"one_hop", "two_hop"}
