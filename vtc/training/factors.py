"""Low-rank factors of compressed layers, which are stored as buffers, as parameters that learn."""

from __future__ import annotations

from torch import nn

from vtc.weights.codec.linear import CompressedLinear
from vtc.weights.codec.terms.low_rank import LowRank


def thaw(model: nn.Module) -> list[str]:
    """Let the factors U and V of every ``CompressedLinear`` learn, in place, under their names; what is rounded to
    integers stays as it is. The state dict has the same keys. Returns the names."""
    names = []
    for where, layer in model.named_modules():
        if isinstance(layer, CompressedLinear):
            for n, term in layer.each():
                if isinstance(term, LowRank):
                    names += [f"{where}.{_as_parameter(layer, f't{n}_{part}')}" for part in ("u", "v")]
    return names


def _as_parameter(layer: CompressedLinear, name: str) -> str:
    if name in layer._buffers:
        layer.register_parameter(name, nn.Parameter(layer._buffers.pop(name)))  # type: ignore[arg-type]
    return name
