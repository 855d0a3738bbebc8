"""W8A8 through torchao: what it computes, and what it refuses."""

import sys

import pytest
import torch
from torch import nn

import vtc
from tests import zoo
from tests.weights.runs import distance, logits, prompts
from vtc.errors import VTCError, WeightsError
from vtc.weights import activations
from vtc.weights.codec import grids

torchao = pytest.importorskip("torchao.quantization")


def linear_and_inputs():
    torch.manual_seed(0)
    return nn.Linear(64, 48).requires_grad_(False), torch.randn(2, 7, 64)


def rounded(x):
    return grids.dequantized(*grids.round_to_nearest(x, 8, 0), 0)


def test_a_dynamic_scale_is_each_token_s_own():
    linear, x = linear_and_inputs()
    x[0, 0] *= 100
    wanted = nn.functional.linear(rounded(x.view(14, 64)), rounded(linear.weight), linear.bias).view(2, 7, 48)
    torchao.quantize_(linear, torchao.Int8DynamicActivationInt8WeightConfig())
    assert distance(linear(x), wanted) < 0.002


@pytest.mark.parametrize("shape", [(14, 64), (2, 7, 64), (1, 2, 7, 64)])
def test_a_static_scale_is_fixed_and_cuts_off(shape):
    linear, x = linear_and_inputs()
    x[0, 0, 0] = 1000.0
    x = x.view(shape)
    largest = torch.tensor(3.0)
    cut = (x / (largest / 127)).round().clamp(-128, 127) * (largest / 127)
    wanted = nn.functional.linear(cut, rounded(linear.weight), linear.bias)
    flat = activations.flattened(linear)
    assert torch.allclose(flat(x), nn.functional.linear(x, linear.weight, linear.bias), rtol=1e-4)
    torchao.quantize_(flat, activations.static_config(largest))
    assert flat(x).shape == wanted.shape and distance(flat(x), wanted) < 0.002


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_are_near(static, dtype):
    model = zoo.build("llava", dtype=dtype)
    before = logits(model)
    assert activations.int8(model, prompts(model) if static else None) is model
    assert 0 < distance(logits(model), before) < 0.05
    layers = [m for m in model.modules() if isinstance(getattr(m, "weight", None), torchao.Int8Tensor)]
    assert len(layers) == 7 * len(model.model.language_model.layers)
    model.generate(**prompts(model)[0], max_new_tokens=3)


def test_a_scale_covers_what_its_layer_saw(model):
    name = "model.language_model.layers.1.mlp.down_proj"
    seen = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0].abs().max()))
    logits(model)
    handle.remove()
    found = activations.largest_inputs(model, prompts(model), {name: model.get_submodule(name)})
    assert torch.allclose(found[name], max(seen))


def test_beside_a_token_patch(model):
    vtc.patch(model, "grid", budget=0.5)
    before = logits(model)
    activations.int8(model, prompts(model))
    assert 0 < distance(logits(model), before) < 0.1


def test_refusals(model):
    with pytest.raises(WeightsError, match="calibration is empty"):
        activations.int8(model, [])
    with pytest.raises(WeightsError, match="embedding"):
        activations.int8(model, include=["decoder", "embeddings"])
    before = {name: type(module) for name, module in model.named_modules()}
    dead = model.model.language_model.layers[1].post_attention_layernorm.weight
    kept = dead.data.clone()
    dead.data.zero_()
    with pytest.raises(WeightsError, match=r"layers.1.mlp.\w+ saw no input"):
        activations.int8(model, prompts(model))
    dead.data.copy_(kept)
    assert {name: type(module) for name, module in model.named_modules()} == before
    activations.int8(model)
    with pytest.raises(WeightsError, match="in int8 already"):
        activations.int8(model)


def test_without_torchao(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(VTCError, match=r"pip install 'vtc-vlm\[ao\]'"):
        activations.int8(model)
