"""``vtc_config.json``: the patch, the recipe of the weights and the hashes of one saved folder. Read strictly."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from vtc.budget.spend import Spend
from vtc.errors import CheckpointError
from vtc.files.digest import weights_sha256
from vtc.methods import registry
from vtc.methods.base import Method
from vtc.version import __version__

CONFIG = "vtc_config.json"
SCHEMA = 1
KEYS = (
    "schema_version",
    "method",
    "options",
    "budget",
    "compression",
    "base_model",
    "weights_sha256",
    "processor_class",
    "versions",
)
LATER = ("adapter", "files")  # in newer folders only: PEFT's adapter, and what else was written
ADAPTER_KEYS = {"name": str, "sha256": str}


def described(method: Method) -> dict[str, Any]:
    """A method as JSON holds it: its name and options, those of combined methods inside."""
    options = {f.name: getattr(method, f.name) for f in dataclasses.fields(method)}
    return {"method": method.name, "options": {k: _plain(v) for k, v in options.items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, Method):
        return described(value)
    if isinstance(value, Spend):
        return {k: _plain(v) for k, v in dataclasses.asdict(value).items()}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def method_from(config: dict[str, Any]) -> Method:
    """The method that ``described`` wrote down."""
    return registry[config["method"]](**{k: _built(v) for k, v in config["options"].items()})


def _built(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_built(v) for v in value)
    if isinstance(value, dict):
        return method_from(value) if "method" in value else Spend(**{k: _built(v) for k, v in value.items()})
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """The checked content of ``vtc_config.json``."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} holds no {CONFIG}: it was not saved by vtc.save, or saving was cut off"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({error}); save the model again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds a {type(config).__name__}, not an object; save the model again")
    missing, unknown = sorted(set(KEYS) - set(config)), sorted(set(config) - {*KEYS, *LATER})
    if config.get("schema_version") != SCHEMA:
        raise CheckpointError(
            f"{path} has schema version {config.get('schema_version')!r}, this vtc ({__version__}) reads {SCHEMA}; "
            "load it with the version it names under 'versions'"
        )
    if missing or unknown:
        raise CheckpointError(f"{path}: missing keys {missing}, unknown keys {unknown}; save the model again")
    if (config["method"] is None) != (config["budget"] is None) or config["method"] is None and config["options"] != {}:
        raise CheckpointError(f"{path}: 'method' and 'budget' must both be null or both be given; save the model again")
    if not isinstance(config["options"], dict) or not isinstance(config["weights_sha256"], str):
        raise CheckpointError(
            f"{path}: 'options' must be an object and 'weights_sha256' a string; save the model again"
        )
    files, adapter = config.get("files", []), config.get("adapter")
    if not (isinstance(files, list) and all(isinstance(name, str) for name in files)) or not (
        adapter is None or isinstance(adapter, dict) and {k: type(v) for k, v in adapter.items()} == ADAPTER_KEYS
    ):
        raise CheckpointError(f"{path}: 'files' are names, 'adapter' is name and sha256; save the model again")
    return config


def contents_sha256(folder: str | os.PathLike) -> str:
    """``weights_sha256``, and for compressed weights with what ``config.json`` says of them: under another description
    the same bytes are other weights. Raises ``CheckpointError``."""
    weights, format = weights_sha256(folder), weight_format(Path(folder))
    if format is None:
        return weights
    return hashlib.sha256((weights + json.dumps(format, sort_keys=True)).encode()).hexdigest()


def weight_format(folder: Path) -> Any:
    """``quantization_config`` of the folder's ``config.json``, None without."""
    path = folder / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("quantization_config")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); save the model again") from error
