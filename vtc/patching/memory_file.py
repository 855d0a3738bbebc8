"""The tensors of a picture's memory by name, as they stand in its file, and what the model is known by."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from vtc.engine.kv_cache import RowCacheLayer
from vtc.engine.memory import Memory, Quota, Stored
from vtc.engine.rows import Columns
from vtc.models.inspection import unwrapped


def tensors_of(layer: RowCacheLayer) -> dict[str, Tensor]:
    """All that a layer holds, by name."""
    out = named("", Stored(layer.columns(0, 1, layer.keys.device), layer.keys, layer.values))
    if layer.memory is None:
        return out
    quota = layer.memory.quota
    return out | named("others.", layer.memory.others) | {"wanted": quota.keys, "count": quota.count}


def named(lead: str, held: Stored) -> dict[str, Tensor]:
    columns = held.columns
    parts = {"index": columns.index, "valid": columns.valid, "log_size": columns.log_size}
    parts |= {"keys": held.keys, "values": held.values}
    return {lead + name: t for name, t in parts.items() if t is not None}


def bounds_of(layer: RowCacheLayer) -> list[int] | None:
    """What else a file must say of a layer."""
    if layer.memory is None:
        return None
    quota = layer.memory.quota
    return [quota.most, quota.left, int(quota.mean)]


def fill(layer: RowCacheLayer, tensors: dict[str, Tensor], length: int, bounds: list[int] | None) -> None:
    """Put what ``tensors_of`` and ``bounds_of`` described into an empty layer. Raises ``KeyError``, ``ValueError``."""
    held = stored_of("", tensors, length)
    layer.lazy_initialization(held.keys, held.values)
    layer.logical = length
    memory = None
    if bounds is not None:
        most, left, mean = map(int, bounds)
        wanted, count = tensors["wanted"], tensors["count"]
        if wanted.shape != (1,) or count.shape != (1,):
            raise ValueError(f"how many are keys is {list(wanted.shape)}, and not one number")
        quota = Quota(wanted, count, most, left, bool(mean))
        memory = Memory(stored_of("others.", tensors, length), held.columns.index[:, :0], 0, quota)
    layer.hold(held.columns, held.keys, held.values, 0, memory)


def stored_of(lead: str, tensors: dict[str, Tensor], length: int) -> Stored:
    k, v, index = (tensors[lead + name] for name in ("keys", "values", "index"))
    valid, sizes = (tensors.get(lead + name) for name in ("valid", "log_size"))
    shape = (1, k.shape[2])
    if k.shape != v.shape or any(t is not None and t.shape != shape for t in (index, valid, sizes)):
        raise ValueError(f"{lead}keys are {list(k.shape)} and their columns {list(index.shape)}")
    if shape[1] and not 0 <= int(index.min()) <= int(index.max()) < length:
        raise ValueError(f"a column stands outside of the {length} there are")
    return Stored(Columns(index, valid, sizes), k, v)


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over name, kind, shape and bits (folded by exclusive or) of each of a model's tensors: one pass over the
    weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(unwrapped(model).state_dict().items()):
        held = tensor.detach()
        bits = int(torch.hash_tensor(held.contiguous()).view(torch.int64)) if held.numel() else 0
        digest.update(f"{name} {held.dtype} {list(held.shape)} {bits}\n".encode())
    return digest.hexdigest()
