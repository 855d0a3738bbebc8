"""``vtc_manifest.json`` beside compressed weights: where they come from, what was done, what it cost. Read strictly."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtc.errors import CheckpointError
from vtc.files.strict import read_json
from vtc.weights.lossless.index import HASH
from vtc.weights.lossless.tensorfile import is_size

MANIFEST = "vtc_manifest.json"
SCHEMA = 1


@dataclass(frozen=True)
class Layer:
    """What a layer became. error: ``||X (W - V)T|| / ||X WT||`` on the calibration, None without one."""

    bits: float
    bytes: int
    error: float | None


@dataclass(frozen=True)
class Manifest:
    """parent_sha256: of the original's weights (``vtc.checkpoint.weights_sha256``); recipe: as ``Recipe.written`` gives
    it; calibration_sha256: see below, None without one; evaluation: numbers by name, None where nothing was measured;
    versions: of vtc and what decides a result.

    Raises ``CheckpointError`` for values that are none of these.
    """

    parent_sha256: str
    recipe: dict[str, Any]
    calibration_sha256: str | None
    layers: dict[str, Layer]
    evaluation: dict[str, float] | None
    versions: dict[str, str]

    def __post_init__(self) -> None:
        for name in ("parent_sha256", "calibration_sha256"):
            value = getattr(self, name)
            if not (isinstance(value, str) and HASH.fullmatch(value) or name != "parent_sha256" and value is None):
                raise CheckpointError(f"manifest: {name} is {str(value)[:80]!r}, not 64 hexadecimal digits")
        if not _named(self.recipe, object) or not _named(self.layers, Layer) or not _named(self.versions, str):
            raise CheckpointError("manifest: recipe, layers and versions are objects; versions holds texts")
        for name, layer in self.layers.items():
            if not _number(layer.bits) or not is_size(layer.bytes) or not (layer.error is None or _number(layer.error)):
                raise CheckpointError(f"manifest: layer {name} has bits, bytes or an error that is no number from 0 on")
        if self.evaluation is not None and not (
            _named(self.evaluation, int | float) and all(map(_finite, self.evaluation.values()))
        ):
            raise CheckpointError("manifest: evaluation is an object of finite numbers, or null")

    @classmethod
    def of(cls, told: dict[str, Any], parent_sha256: str, versions: dict[str, str]) -> Manifest:
        """From what ``vtc.compress`` wrote into a model's config; nothing was evaluated. There an error is the squared
        one."""
        layers = {
            name: Layer(each["bits"], each["bytes"], None if each["error"] is None else math.sqrt(each["error"]))
            for name, each in told["layers"].items()
        }
        return cls(parent_sha256, told["recipe"], told.get("calibration_sha256"), layers, None, versions)

    def write(self, folder: Path) -> Path:
        """Into ``folder``, whole or not at all."""
        from vtc.weights.lossless.archive import published

        path = Path(folder) / MANIFEST
        try:
            text = json.dumps({"schema": SCHEMA, **dataclasses.asdict(self)}, indent=2, sort_keys=True, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"manifest: the recipe is not plain JSON ({error})") from error
        with published(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        return path

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest in ``folder``. Raises ``CheckpointError`` for anything that ``write`` would not have written."""
        path = Path(folder) / MANIFEST
        try:
            fields = read_json(path)
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing; was this folder compressed by vtc?") from None
        schema = fields.pop("schema", None)
        if schema != SCHEMA:
            raise CheckpointError(
                f"{path} has the schema {schema!r}, this vtc reads {SCHEMA}; use the vtc that wrote it"
            )
        _strict(fields, cls, str(path))
        if not _named(fields["layers"], dict):
            raise CheckpointError(f"{path}: layers is no object of objects")
        for name, layer in fields["layers"].items():
            _strict(layer, Layer, f"{path}: layer {name}")
            fields["layers"][name] = Layer(**layer)
        return cls(**fields)


def calibration_sha256(examples: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 over the names, dtypes, shapes and values of the tensors of each example, in order."""
    digest = hashlib.sha256()
    for example in examples:
        for name in sorted(example):
            _count(digest, name, example[name])
        digest.update(b"\n")
    return digest.hexdigest()


def _count(digest: Any, name: str, value: Any) -> None:
    import torch

    if isinstance(value, list | tuple) and any(torch.is_tensor(each) for each in value):
        for each in value:
            _count(digest, name, each)
    elif value is None or isinstance(value, str):
        digest.update(f"{name}:{value!r};".encode())
    else:
        value = torch.as_tensor(value).detach().cpu().contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.view(-1).view(torch.uint8).numpy().data)


def _strict(fields: dict[str, Any], kind: Any, where: str) -> None:
    known = {field.name for field in dataclasses.fields(kind)}
    missing, unknown = sorted(known - set(fields)), sorted(set(fields) - known)
    if missing or unknown:
        raise CheckpointError(f"{where}: missing fields {missing}, unknown fields {unknown}; use the vtc that wrote it")


def _named(value: Any, kind: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, kind) for k, v in value.items())


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any) -> bool:
    return _finite(value) and value >= 0
