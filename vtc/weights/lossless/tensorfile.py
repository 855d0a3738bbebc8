"""The head of a safetensors file: which tensor stands where. Checked before anything is believed.

Format: https://github.com/huggingface/safetensors (8 bytes of length, that much JSON, the tensors without gaps).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtc.errors import CheckpointError
from vtc.files.strict import parse_json
from vtc.weights.lossless.planes import BITS

LONGEST = 100_000_000  # bytes of a head; the library's own bound
METADATA = "__metadata__"


@dataclass(frozen=True)
class Place:
    """One tensor of a file: ``size`` bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


def read_head(path: Path) -> tuple[bytes, list[Place]]:
    """The head of a file, length and all, and its tensors in the order of their bytes. Raises ``CheckpointError``."""
    found = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if found < 8 or length > min(found - 8, LONGEST):
            raise CheckpointError(f"{path} is no whole safetensors file: {found} bytes, a head of {length}")
        head = length.to_bytes(8, "little") + stream.read(length)
    places = parse_head(head, str(path))
    size = len(head) + sum(place.size for place in places)
    if size != found:
        raise CheckpointError(f"{path} has {found} bytes and its head describes {size}; the file is damaged")
    return head, places


def parse_head(head: bytes, where: str) -> list[Place]:
    """The tensors that a head describes, in the order of their bytes. Raises ``CheckpointError``."""
    described = parse_json(head[8:], where)
    described.pop(METADATA, None)
    rows = []
    for name, entry in described.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise CheckpointError(f"{where}: tensor {name!r} is not described by dtype, shape and data_offsets")
        offsets = entry["data_offsets"]
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_size, offsets)):
            raise CheckpointError(f"{where}: tensor {name!r} has the offsets {offsets!r}, not two sizes")
        size = tensor_bytes(entry["dtype"], entry["shape"], f"{where}: tensor {name!r}")
        rows.append((offsets[0], offsets[1], Place(name, entry["dtype"], tuple(entry["shape"]), size)))
    rows.sort(key=lambda row: row[:2])
    at = 0
    for start, end, place in rows:
        if (start, end) != (at, at + place.size):
            raise CheckpointError(
                f"{where}: tensor {place.name!r} of {place.size} bytes stands at {start} to {end}, not at {at}"
            )
        at = end
    return [place for _, _, place in rows]


def tensor_bytes(dtype: Any, shape: Any, where: str) -> int:
    """Bytes of a tensor. Raises ``CheckpointError`` for an unknown dtype, a shape that is none, or half a byte."""
    if not isinstance(dtype, str) or dtype not in BITS:
        raise CheckpointError(f"{where} has the dtype {dtype!r}; known are {', '.join(BITS)}")
    if not isinstance(shape, list | tuple) or len(shape) > 64 or not all(map(is_size, shape)):
        raise CheckpointError(f"{where} has the shape {str(shape)[:80]}, not at most 64 sizes")
    bits = math.prod(shape) * BITS[dtype]
    if bits % 8 or bits >= 1 << 63:
        raise CheckpointError(f"{where} takes {bits} bits, not a whole number of bytes below 2^60")
    return bits // 8


def is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63
