"""Save and load a patched model: ``vtc_config.json`` beside the model's own files, strict in both directions.

Nothing is written into a live model's config. The config file is written last, so a folder whose saving was interrupted
is refused instead of loaded without its patch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from torch import nn

import vtc
from vtc.errors import CheckpointError
from vtc.methods import registry
from vtc.methods.base import Method
from vtc.patching import Patch, patch_of
from vtc.spend import Spend
from vtc.tokens import Budget

CONFIG = "vtc_config.json"
SCHEMA = 1
KEYS = ("schema_version", "method", "options", "budget", "base_model", "weights_sha256", "processor_class", "versions")


def save(model: nn.Module, folder: str | os.PathLike, processor: Any = None) -> Path:
    """Write model, patch and (when given) processor to ``folder``. Raises ``CheckpointError`` without a patch."""
    patch = patch_of(model)
    if patch is None:
        raise CheckpointError("this model has no patch to save; call vtc.patch first, or model.save_pretrained alone")
    if getattr(patch.model, "peft_config", None) or hasattr(model, "get_base_model"):
        raise CheckpointError(
            "this model carries a PEFT adapter; call merge_and_unload() first, or save the adapter apart"
        )
    if not hasattr(patch.model, "save_pretrained"):
        raise CheckpointError(
            f"{type(patch.model).__name__} is no model of transformers; save its state_dict, patch it again when loaded"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    getattr(patch.model, "save_pretrained")(folder)  # noqa: B009
    if processor is not None:
        processor.save_pretrained(folder)
    config = {
        "schema_version": SCHEMA,
        **described(patch.method),
        "budget": patch.budget.value,
        "base_model": getattr(patch.model.config, "_name_or_path", "") or type(patch.model).__name__,
        "weights_sha256": weights_sha256(folder),
        "processor_class": None if processor is None else type(processor).__name__,
        "versions": versions(),
    }
    write_json(folder / CONFIG, config)
    return folder


def load(folder: str | os.PathLike, **kwargs: Any) -> nn.Module:
    """The model saved in ``folder``, patched as it was. ``kwargs`` go to ``from_pretrained``.

    Raises ``CheckpointError`` for a missing or malformed config, unknown or missing keys, another schema version, or
    weights that are not the ones that were saved.
    """
    from transformers import AutoModelForImageTextToText

    folder = Path(folder)
    config = read_config(folder)
    found = weights_sha256(folder)
    if found != config["weights_sha256"]:
        raise CheckpointError(
            f"{folder}: the weights hash to {found[:12]}… and {CONFIG} names {config['weights_sha256'][:12]}…; "
            "the files are damaged or belong to another model, save again"
        )
    try:
        method, budget = method_from(config), Budget.of(config["budget"])
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    loaded: Any = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, **kwargs)
    model, info = loaded
    lost = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys and kind.endswith("_keys")}
    if lost:
        raise CheckpointError(
            f"{folder}: weights and model do not fit ({lost}); save the plain model, without adapters"
        )
    Patch(model, method, budget).install()
    return model


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
    missing, unknown = sorted(set(KEYS) - set(config)), sorted(set(config) - set(KEYS))
    if config.get("schema_version") != SCHEMA:
        raise CheckpointError(
            f"{path} has schema version {config.get('schema_version')!r}, this vtc ({vtc.__version__}) reads {SCHEMA}; "
            "load it with the version it names under 'versions'"
        )
    if missing or unknown:
        raise CheckpointError(f"{path}: missing keys {missing}, unknown keys {unknown}; save the model again")
    if not isinstance(config["options"], dict) or not isinstance(config["weights_sha256"], str):
        raise CheckpointError(
            f"{path}: 'options' must be an object and 'weights_sha256' a string; save the model again"
        )
    return config


def weights_sha256(folder: str | os.PathLike) -> str:
    """SHA-256 over names and bytes of the folder's safetensors files. Raises ``CheckpointError`` when there is none."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no .safetensors file; vtc reads and writes no other weight format")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions that decide what a result means."""
    import torch
    import transformers

    return {"vtc": vtc.__version__, "torch": torch.__version__, "transformers": transformers.__version__}


def write_json(path: Path, content: Any) -> None:
    """Write to a temporary name, sync, rename: the file is whole or absent."""
    temporary = path.with_suffix(path.suffix + ".tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=2, sort_keys=True)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
