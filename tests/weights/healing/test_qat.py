"""Training with rounded weights, and what is left of it after they are rounded for good."""

import copy

import pytest
import torch
from torch import nn

import vtc
from tests import zoo
from tests.weights.layers import inputs
from vtc.errors import WeightsError
from vtc.models import family_of
from vtc.weights.fitting.gram import Gram
from vtc.weights.healing import qat
from vtc.weights.passes import registry
from vtc.weights.passes.base import Candidate
from vtc.weights.select import layers_of

pytest.importorskip("torchao.quantization.qat")


def tiny(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8))


def example():
    x = inputs() / 5
    teacher = tiny(1)
    with torch.no_grad():
        return x, teacher(x)


def rounded(model, bits, group):
    """The model with every weight as ``rtn`` stores it."""
    for layer in model:
        if isinstance(layer, nn.Linear):
            done = registry["rtn"](bits=bits, group=group).fit(Candidate(layer.weight.detach(), Gram.empty(1)))
            layer.weight.data.copy_(done.approximation)
    return model


def train(model, x, y, steps=60, rate=2e-3):
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    losses = []
    for _ in range(steps):
        loss = (model(x) - y).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


@pytest.mark.parametrize("bits, group", [(2, 32), (3, 0), (4, 16), (8, 64)])
def test_training_lowers_the_loss_and_rounding_then_changes_nothing(bits, group):
    x, y = example()
    model = qat.prepare(tiny(), bits=bits, group=group)
    losses = train(model, x, y)
    assert losses[-1] < 0.8 * losses[0]
    with torch.no_grad():
        in_training = model(x)
        plain = qat.convert(model)
        assert [type(layer) for layer in plain] == [nn.Linear, nn.GELU, nn.Linear]
        assert not torch.allclose(plain(x), in_training, rtol=1e-4)
        assert torch.allclose(rounded(plain, bits, group)(x), in_training, rtol=1e-4, atol=1e-4)


def test_a_trained_model_loses_less_than_by_rounding_alone():
    x, y = example()
    trained = tiny()
    train(trained, x, y, steps=150)
    model = qat.prepare(copy.deepcopy(trained), bits=2, group=32)
    train(model, x, y, rate=3e-4)
    loss = [(rounded(each, 2, 32)(x) - y).square().mean() for each in (qat.convert(model), trained)]
    assert loss[0] < 0.6 * loss[1]


def test_a_vlm_is_compressed_as_it_was_trained():
    model = zoo.build("llava")
    prompt = zoo.prompt(model)
    tower = model.model.vision_tower
    before = {name: type(module) for name, module in tower.named_modules()}
    qat.prepare(model, bits=4, group=8, names=layers_of(model, family_of(model)))
    assert {name: type(module) for name, module in tower.named_modules()} == before
    out = model(**prompt, labels=prompt["input_ids"])
    out.loss.backward()
    projection = model.get_submodule("model.language_model.layers.0.mlp.up_proj")
    assert projection.weight.grad.abs().max() > 0
    vtc.compress(qat.convert(model), "rtn:bits=4:group=8", progress=False)
    with torch.no_grad():
        assert torch.allclose(model(**prompt).logits, out.logits, rtol=1e-3, atol=1e-4)


def test_refusals():
    for options, told in (
        (dict(bits=5), "bits must be one of"),
        (dict(group=-1), "group must be"),
        (dict(group=48), "groups of 48 do not divide"),
        (dict(names=["3"]), "no linear layer '3'"),
        (dict(names=["1"]), "no linear layer '1'"),
        (dict(names=[]), "no linear layer is left"),
    ):
        model = tiny()
        with pytest.raises(WeightsError, match=told):
            qat.prepare(model, **options)
        assert [type(layer) for layer in model] == [nn.Linear, nn.GELU, nn.Linear]
    with pytest.raises(WeightsError, match="call qat.prepare first"):
        qat.convert(tiny())
