"""The weights that a compressed checkpoint stands for, tensor by tensor, by the names and dtypes of its original.

They must come out the same on every machine, to the bit: what is stored as a difference from them is lost otherwise.
So only elementwise arithmetic is used, where each operation is rounded once. A low rank is no matrix product here: its
outer products are added one after the other, in float32. Terms of other kinds are left out, which costs bytes only.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vtc.errors import CheckpointError
from vtc.weights.codec.terms import read_term
from vtc.weights.codec.terms.base import Term
from vtc.weights.codec.terms.low_rank import LowRank
from vtc.weights.lossless.planes import Bytes
from vtc.weights.lossless.tensorfile import Place

METHOD = "vtc"  # the ``quant_method`` of such a checkpoint
KINDS = ("floats", "ints", "trits", "codebook", "columns", LowRank.kind)
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Terms = tuple[dict[str, Any], ...]  # each as JSON holds it, with the prefix of its tensors' names


class Approximate:
    """The tensors of the checkpoint in ``folder``, as they approximate those of its original."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files = {key: file for file in sorted(folder.glob("*.safetensors")) for key in _keys(file)}
        self.layers = _layers(folder)

    def guess(self, place: Place) -> tuple[Terms, Bytes] | None:
        """The terms that stand for a tensor of the original and the bytes that they make; None without any. No terms:
        the tensor of the same name."""
        terms: Terms = ()
        if place.name not in self.files:
            terms = self.terms_of(place.name.removesuffix(".weight")) if place.name.endswith(".weight") else ()
            if not terms:
                return None
        made = self.make(place, terms)
        return None if made is None else (terms, made)

    def make(self, place: Place, terms: Terms) -> Bytes | None:
        """The bytes that ``terms`` make of a tensor; None where they make no such tensor.

        Raises ``CheckpointError`` for terms that are none, and for tensors that do not fit them.
        """
        made = None
        try:
            if not terms and place.name in self.files:
                made = self._tensor(place.name)
            elif terms and len(place.shape) == 2 and place.dtype in DTYPES:
                made = self._summed(place, terms)
        except (TypeError, ValueError, LookupError, RuntimeError, SafetensorError) as error:
            reason = f"cannot be made of {str(terms)[:200]} ({error})"
            raise CheckpointError(f"{self.folder}: {place.name} {reason}; the files are damaged") from error
        if made is None or tuple(made.shape) != place.shape:
            return None
        if place.dtype in DTYPES:
            made = made.to(DTYPES[place.dtype])
        found: Bytes = made.contiguous().view(-1).view(torch.uint8).numpy()
        return found if len(found) == place.size else None

    def terms_of(self, stem: str) -> Terms:
        """The terms that ``config.json`` lists for the layer that files call ``stem``: models and files order names
        differently, so the layer that shares most parts of its name is meant. A wrong one costs bytes, never bits."""
        parts = stem.split(".")
        scores = {
            name: (Counter(parts) & Counter(name.split("."))).total()
            for name in self.layers
            if name.split(".")[-1] == parts[-1]
        }
        return self.layers[max(scores, key=lambda name: scores[name])] if scores else ()

    def _summed(self, place: Place, terms: Terms) -> Tensor | None:
        out, width = place.shape
        total = None
        for written in terms:
            fields = dict(written)
            prefix = f"{place.name.removesuffix('.weight')}.{fields.pop('prefix', '')}"
            term = read_term(fields)
            term.check(out, width)
            tensors = self._tensors(term, prefix, out, width)
            if tensors is None:
                return None
            summand = low_rank(**tensors) if isinstance(term, LowRank) else term.dense(tensors, out, width)
            total = summand if total is None else total + summand
        return total

    def _tensors(self, term: Term, prefix: str, out: int, width: int) -> dict[str, Tensor] | None:
        """The term's tensors; None where they are not those of a matrix ``[out, width]``."""
        wanted = term.shapes(out, width, torch.float32)
        if any(prefix + key not in self.files for key in wanted):
            return None
        found = {key: self._tensor(prefix + key) for key in wanted}
        return found if all(tuple(found[key].shape) == shape for key, (shape, _) in wanted.items()) else None

    def _tensor(self, name: str) -> Tensor:
        with safe_open(self.files[name], framework="pt") as file:
            return file.get_tensor(name)


def low_rank(u: Tensor, v: Tensor) -> Tensor:
    """``U V`` in float32, one product and one sum after the other."""
    total = torch.zeros(u.shape[0], v.shape[1])
    for column, row in zip(u.float().T, v.float(), strict=True):
        total += column[:, None] * row
    return total


def _keys(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="np") as opened:
            return list(opened.keys())
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); the checkpoint is damaged") from error


def _layers(folder: Path) -> dict[str, Terms]:
    """The terms of each compressed layer; nothing where the checkpoint is not in the format of vtc."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); the checkpoint is damaged") from error
    quantization = config.get("quantization_config") if isinstance(config, dict) else None
    if not isinstance(quantization, dict) or quantization.get("quant_method") != METHOD:
        return {}
    try:
        return {name: _terms(layer) for name, layer in quantization["layers"].items()}
    except (AttributeError, TypeError, LookupError) as error:
        raise CheckpointError(f"{path}: the layers are not as vtc writes them ({error!r}); save them again") from error


def _terms(layer: dict[str, Any]) -> Terms:
    return tuple(
        {"prefix": "" if layer.get("embedding") else f"t{n}_", **term}
        for n, term in enumerate(layer["terms"])
        if term["kind"] in KINDS
    )
