"""A compressed model as a ``compressed-tensors`` checkpoint (``pack-quantized``), which transformers and vLLM know.

Only for weights that are plain symmetric integers of 4 or 8 bits. The codes go over as they are: nothing is rounded.
Which layers are quantized is told by patterns of module names, because transformers 5 writes some families under other
names than their modules have, and a list of names would then match nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtc.errors import CheckpointError
from vtc.weights.codec.linear import CompressedEmbedding, CompressedLinear
from vtc.weights.codec.sparsity import DENSE
from vtc.weights.codec.terms.ints import Ints
from vtc.weights.formats import hf, register

BITS = (4, 8)


@register("compressed-tensors")
def save_pretrained(model: Any, folder: Path) -> None:
    """Write ``model`` to ``folder``. Raises ``CheckpointError`` for a layer that the format cannot express."""
    hf.check_described(model, "compressed-tensors")
    layers = compressed(model)
    tensors = model.state_dict()
    for name, layer in layers.items():
        for key in layer.tensors(0):
            del tensors[f"{name}.t0_{key}"]
        tensors |= {f"{name}.weight_{key}": tensor for key, tensor in packed(layer).items()}
    with described_as(model, quantization_config(model, layers)):
        model.save_pretrained(folder, state_dict=tensors)


def compressed(model: nn.Module) -> dict[str, CompressedLinear]:
    """The compressed layers by name. Raises ``CheckpointError`` for one that the format cannot express."""
    found = {n: m for n, m in model.named_modules() if isinstance(m, (CompressedLinear, CompressedEmbedding))}
    for name, layer in found.items():
        if reason := why_not(layer):
            raise CheckpointError(f'{name} {reason}, which compressed-tensors cannot express; save with format="vtc"')
    return found  # type: ignore[return-value]


def why_not(layer: CompressedLinear | CompressedEmbedding) -> str | None:
    """What keeps a layer out of the format, None when nothing does."""
    if isinstance(layer, CompressedEmbedding):
        return "is an embedding"
    term = layer.terms[0]
    if len(layer.terms) != 1 or not isinstance(term, Ints):
        return f"is {' + '.join(t.kind for t in layer.terms)}"
    if term.layout != DENSE or term.zeros or term.scaled:
        return f"is pruned, asymmetric or scaled by inputs ({term})"
    if term.bits not in BITS:
        return f"has {term.bits} bits"
    if term.group and layer.in_features % term.group:
        return f"has {layer.in_features} inputs, no multiple of its group of {term.group}"
    return None


def packed(layer: CompressedLinear) -> dict[str, Tensor]:
    """The layer's tensors as the format has them: packed ``[O, ceil(D bits / 32)]`` int32, scale ``[O, G]``, shape.

    Both formats pack codes + 2^(bits-1), lowest bits first, so whole words are the same bytes (little-endian).
    """
    tensors = layer.tensors(0)
    codes = nn.functional.pad(tensors["codes"], (0, -tensors["codes"].shape[1] % 4)).contiguous()
    shape = torch.tensor([layer.out_features, layer.in_features])
    return {"packed": codes.view(torch.int32), "scale": tensors["scale"], "shape": shape}


def quantization_config(model: nn.Module, layers: dict[str, CompressedLinear]) -> dict[str, Any]:
    """What ``config.json`` says: a group for each grid, and patterns of the linear layers that stay as they are."""
    left = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n not in layers]
    grids: dict[tuple[int, int], list[str]] = {}
    for name, layer in layers.items():
        term: Any = layer.terms[0]
        grids.setdefault((term.bits, term.group), []).append(name)
    groups = {}
    for n, ((bits, group), names) in enumerate(grids.items()):
        targets = ["Linear"] if len(grids) == 1 else patterns(names, set(layers) - set(names))
        groups[f"group_{n}"] = {"targets": targets, "weights": weights(bits, group), "format": "pack-quantized"}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": patterns(left, set(layers)),
    }


def weights(bits: int, group: int) -> dict[str, Any]:
    """One grid in the format's words."""
    scope: dict[str, Any] = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
    return {"num_bits": bits, "type": "int", "symmetric": True, "dynamic": False, **scope}


def patterns(wanted: Iterable[str], others: Collection[str]) -> list[str]:
    """Few patterns that match every name in ``wanted`` and none in ``others``, by parts of the names that stay when a
    family's modules move: a part of its own ("vision_tower"), else the shortest end of the name."""
    found: list[str] = []
    for name in wanted:
        if any(matches(pattern, name) for pattern in found):
            continue
        parts = name.split(".")
        own = [f"re:.*{re.escape(part)}.*" for part in parts if not part.isdigit()]
        ends = [rf"re:(.*\.)?{re.escape('.'.join(parts[n:]))}$" for n in range(len(parts) - 1, -1, -1)]
        fitting = (p for p in (*own, *ends) if not any(matches(p, other) for other in others))
        pattern = next(fitting, None)
        if pattern is None:
            raise CheckpointError(f'no pattern tells {name} from the other layers; save with format="vtc"')
        found.append(pattern)
    return found


def matches(pattern: str, name: str) -> bool:
    """Does the format's pattern match from the start of the name, as its readers have it?"""
    return re.match(pattern.removeprefix("re:"), name) is not None


@contextmanager
def described_as(model: Any, description: dict[str, Any]):
    """``save_pretrained`` inside writes ``description`` and the tensors it is given; afterwards all is as before."""
    quantizer, config = model.hf_quantizer, model.config.quantization_config
    model.hf_quantizer, model.config.quantization_config = None, description
    hf.unlock(model.config)
    try:
        yield
    finally:
        hf.lock(model.config)
        model.hf_quantizer, model.config.quantization_config = quantizer, config
