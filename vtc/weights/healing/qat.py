"""Quantization-aware training through torchao: train with rounded weights, then round them for good.

::

    qat.prepare(model, bits=4, group=32, names=layers_of(model, family_of(model)))
    ...                                          # train as ever
    qat.convert(model)
    vtc.compress(model, "rtn:bits=4:group=32")   # the rounding that was trained with
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from vtc.errors import WeightsError
from vtc.weights._torchao import torchao
from vtc.weights.passes.base import check_bits, check_group


def prepare(model: nn.Module, bits: int = 4, group: int = 32, names: Iterable[str] | None = None) -> nn.Module:
    """Round the weights of linear layers in every forward, in place; gradients pass as if they were not rounded.

    The grid is that of ``rtn``: symmetric, a scale for every ``group`` inputs (0: whole rows). names: the layers
    (None: every ``nn.Linear``). Raises ``WeightsError`` for layers that are not there, or that ``group`` does not
    divide.
    """
    check_bits(bits)
    check_group(group)
    linears = {name: module for name, module in model.named_modules() if type(module) is nn.Linear and name}
    chosen = set(linears) if names is None else set(names)
    for name in sorted(chosen):
        if name not in linears:
            raise WeightsError(f"there is no linear layer {name!r} in this model; layers_of names them")
        if group and linears[name].in_features % group:
            raise WeightsError(
                f"{name} has {linears[name].in_features} inputs, which groups of {group} do not divide; "
                "choose another group, or 0 for whole rows"
            )
    if not chosen:
        raise WeightsError("no linear layer is left to train with rounded weights")
    quantization, granularity = torchao("quantization"), torchao("quantization.granularity")
    qat = torchao("quantization.qat")
    rounding = qat.IntxFakeQuantizeConfig(
        getattr(torch, f"int{bits}"),
        granularity=granularity.PerGroup(group) if group else granularity.PerAxis(0),
        mapping_type=torchao("quantization.quant_primitives").MappingType.SYMMETRIC,
    )
    config = qat.QATConfig(weight_config=rounding, step="prepare")
    quantization.quantize_(model, config, filter_fn=lambda module, name: name in chosen)
    return model


def convert(model: nn.Module) -> nn.Module:
    """Plain linear layers again, in place, with the trained weights, not rounded: ``rtn`` with the same bits and group
    rounds them as they were in training (float32: the same
    codes; in bfloat16 its scales are rounded, too). Raises ``WeightsError`` where nothing was prepared."""
    qat = torchao("quantization.qat")
    if not any(isinstance(module, qat.FakeQuantizedLinear) for module in model.modules()):
        raise WeightsError("no layer of this model trains with rounded weights; call qat.prepare first")
    config = qat.QATConfig(step="convert")
    fake = lambda module, name: isinstance(module, qat.FakeQuantizedLinear)  # noqa: E731
    torchao("quantization").quantize_(model, config, filter_fn=fake)
    return model
