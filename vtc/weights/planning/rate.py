"""Rate and distortion of a compressed layer: the bits a weight takes in an archive against its output error."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from vtc.weights.lossless import planes
from vtc.weights.passes.base import Candidate, Pass

NAMES = {torch.uint8: "U8", torch.int32: "I32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}


def coded_bytes(tensor: Tensor) -> int:
    """What a tensor takes as byte planes under zstd."""
    raw = tensor.detach().cpu().contiguous().view(torch.uint8).numpy().reshape(-1)
    return len(planes.coded(raw, NAMES[tensor.dtype]))


def coded_bits(layer: Candidate) -> float:
    """Bits a weight that all tensors of a layer take in an archive, scales and masks included."""
    tensors = (tensor for _, found in layer.all_parts for tensor in found.values())
    return 8 * sum(map(coded_bytes, tensors)) / layer.weight.numel()


def curve(layer: Candidate, passes: Iterable[Pass]) -> list[tuple[float, float]]:
    """``(bits a weight, output error)`` of the layer after each of the passes, both measured."""
    done = (each.fit(layer) for each in passes)
    return [(coded_bits(candidate), candidate.error) for candidate in done]
