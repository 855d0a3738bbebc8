"""A delta as a folder: ``delta.safetensors``, and ``vtc_delta.json``, which says what it is and whose. Strict."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vtc.errors import CheckpointError, VTCError
from vtc.files.atomic import write_json
from vtc.files.digest import versions, weights_sha256
from vtc.files.folders import replacing
from vtc.files.strict import read_json
from vtc.weights.codec.terms import read_term
from vtc.weights.deltas.delta import Change, Delta, key_of

CONFIG, TENSORS, SCHEMA = "vtc_delta.json", "delta.safetensors", 1
KEYS = {"schema_version", "base", "base_sha256", "recipe", "layers", "whole", "weights_sha256", "sha256", "versions"}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LAYER_KEYS = {"shape", "dtype", "terms", "error"}


def save(delta: Delta, folder: str | os.PathLike) -> Path:
    """Write ``delta`` to ``folder``, which appears whole or not at all. Raises ``CheckpointError`` where it exists, and
    for a full disk."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists; give another folder or remove it")
    with replacing(folder) as temporary:
        save_file({name: t.contiguous() for name, t in delta.tensors().items()}, temporary / TENSORS)
        config = {
            "schema_version": SCHEMA,
            "base": delta.base,
            "base_sha256": delta.base_sha256,
            "recipe": delta.recipe,
            "layers": {name: _written(change) for name, change in delta.layers.items()},
            "whole": sorted(delta.whole),
            "weights_sha256": weights_sha256(temporary),
            "versions": versions(),
        }
        write_json(temporary / CONFIG, {**config, "sha256": _digest(config)})
    return folder


def load(folder: str | os.PathLike) -> Delta:
    """The delta saved in ``folder``. Raises ``CheckpointError`` when anything is missing, unknown or damaged."""
    path = Path(folder) / CONFIG
    try:
        config = read_json(path)
        _check(path, config)
        if weights_sha256(folder) != config["weights_sha256"]:
            raise CheckpointError(f"{folder}: {TENSORS} is not the file that {CONFIG} names; copy the delta again")
        return _read(config, load_file(Path(folder) / TENSORS))
    except VTCError as error:
        raise CheckpointError(str(error) if str(folder) in str(error) else f"{path}: {error}") from error
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} holds no delta ({CONFIG} and {TENSORS}); give the folder that was saved"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error!r}); copy the delta again") from error


def _check(path: Path, config: dict[str, Any]) -> None:
    if config.get("schema_version") != SCHEMA:
        raise CheckpointError(f"schema version {config.get('schema_version')!r}, and this vtc reads {SCHEMA}")
    missing, unknown = sorted(KEYS - set(config)), sorted(set(config) - KEYS)
    if missing or unknown:
        raise CheckpointError(f"missing fields {missing}, unknown fields {unknown}; use the vtc that wrote it")
    if _digest({key: value for key, value in config.items() if key != "sha256"}) != config["sha256"]:
        raise CheckpointError("the file was changed after it was written; copy the delta again")


def _read(config: dict[str, Any], tensors: dict[str, Tensor]) -> Delta:
    layers = {}
    for name, written in config["layers"].items():
        if set(written) != LAYER_KEYS:
            raise CheckpointError(f"{name} has the fields {sorted(written)}, not {sorted(LAYER_KEYS)}")
        shape, dtype = written["shape"], DTYPES.get(written["dtype"])
        if dtype is None or len(shape) != 2 or not all(type(n) is int and 0 < n < 2**31 for n in shape):
            raise CheckpointError(f"{name} is {written['dtype']!r} {str(shape)[:80]}, no matrix of floats")
        (out, width), parts = shape, []
        for n, described in enumerate(written["terms"]):
            term = read_term(described)
            term.check(out, width)
            wanted = term.shapes(out, width, dtype)
            found = {key: tensors.pop(key_of(name, n, key)) for key in wanted}
            for key, (shape, kind) in wanted.items():
                if tuple(found[key].shape) != shape or found[key].dtype != kind:
                    raise CheckpointError(
                        f"{key_of(name, n, key)} is {list(found[key].shape)}, not {list(shape)} {kind}"
                    )
            parts.append((term, found))
        layers[name] = Change((out, width), tuple(parts), dtype, written["error"])
    whole = {name: tensors.pop(f"whole/{name}") for name in config["whole"]}
    if tensors:
        raise CheckpointError(f"{TENSORS} also holds {sorted(tensors)[:3]}, which nothing describes")
    return Delta(config["base"], config["base_sha256"], config["recipe"], layers, whole)


def _written(change: Change) -> dict[str, Any]:
    terms = [term.written() for term, _ in change.parts]
    dtype = str(change.dtype).removeprefix("torch.")
    return {"shape": list(change.shape), "dtype": dtype, "terms": terms, "error": change.error}


def _digest(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
