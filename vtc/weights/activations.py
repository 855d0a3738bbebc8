"""W8A8: weights and activations of linear layers in int8, multiplied by torchao's kernels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vtc.errors import WeightsError
from vtc.models import family_of
from vtc.weights._torchao import torchao
from vtc.weights.calibration.block_walk import Example, Walk
from vtc.weights.formats.hf import replace_module
from vtc.weights.pipeline import in_order
from vtc.weights.select import layers_of


class FlatLinear(nn.Linear):
    """A linear layer that sees ``[T, D]``: torchao's fixed scales must have as many dimensions as the inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


def int8(
    model: nn.Module,
    calibration: Iterable[Example] | None = None,
    include: Iterable[str] = ("decoder",),
    skip: Iterable[str] = (),
) -> nn.Module:
    """Compute linear layers of ``model`` in int8, in place; weights have a scale for every output row.

    Dynamic without ``calibration``: every token finds its own scale as it runs. Static with it (prompts with pictures,
    as the processor makes them): a layer has one fixed scale, from the largest input it saw; what is larger is cut off.
    For running, not for storing: save the model before, and do this again after loading.

    Raises ``WeightsError`` for layers that cannot be computed so, ``VTCError`` without torchao.
    """
    quantization = torchao("quantization")
    layers = layers_of(model, family_of(model), include, skip)
    for name, layer in layers.items():
        if not isinstance(layer, nn.Linear):
            raise WeightsError(f"{name} is an embedding, which multiplies nothing; leave embeddings out")
        if isinstance(layer.weight, quantization.Int8Tensor):
            raise WeightsError(f"{name} computes in int8 already; load the model again to change that")
    reach = None if calibration is None else largest_inputs(model, calibration, layers)
    for name, layer in layers.items():
        if reach is None:
            quantization.quantize_(layer, quantization.Int8DynamicActivationInt8WeightConfig())
        else:
            flat = flattened(layer)
            quantization.quantize_(flat, static_config(reach[name]))
            replace_module(model, name, flat)
    return model


def largest_inputs(model: nn.Module, calibration: Iterable[Example], layers: dict[str, nn.Module]) -> dict[str, Tensor]:
    """max |x| of what each layer sees, a scalar. Raises ``WeightsError`` where a layer sees nothing but zeros."""
    walk, found = Walk(model, calibration), {}
    for block, inside in in_order(model, walk.family, layers):
        for name, buckets in walk.see(block, inside).items():
            found[name] = torch.stack([gram.largest.max() for gram in buckets.values()]).max()
        if isinstance(block, int):
            walk.step(block)
    for name in layers:
        if name not in found or not found[name] > 0:
            raise WeightsError(f"{name} saw no input in the calibration; add examples that reach it, or skip it")
    return found


def static_config(largest: Tensor) -> Any:
    """torchao's configuration of a layer whose inputs reach ``largest``."""
    quantization, granularity = torchao("quantization"), torchao("quantization.granularity")
    return quantization.Int8StaticActivationInt8WeightConfig(
        act_quant_scale=(largest.float() / 127).view(1, 1),
        granularity=[granularity.PerTensor(), granularity.PerRow()],
    )


def flattened(layer: Any) -> FlatLinear:
    """The same ``nn.Linear``, with the same parameters, as a ``FlatLinear``."""
    flat = FlatLinear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    flat.weight, flat.bias = layer.weight, layer.bias
    return flat.train(layer.training)
