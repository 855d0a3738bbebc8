"""``vtc_config.json``: the patch, the recipe of the weights and the hashes of one saved folder. Read strictly.

Every file that decides what the loaded model computes has its hash there, over its bytes: weights, ``config.json``,
``generation_config.json``, what the processor wrote; and so has the file itself. Settings are changed in Python, on the
loaded model, and saved again. The model card and files of one's own are free.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vtc.budget.spend import Spend
from vtc.checkpoint.untrusted import MODEL, PROCESSOR, reads
from vtc.errors import CheckpointError
from vtc.files.digest import file_sha256, weights_sha256
from vtc.files.folders import check_whole, names_in, safe_path
from vtc.files.strict import read_json
from vtc.methods import registry
from vtc.methods.base import Method
from vtc.version import __version__

CONFIG = "vtc_config.json"
SCHEMA = 2
SEAL = "sha256"  # of the config itself
ADAPTER_KEYS = {"name": str, "sha256": str}
WORDS = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number", type(None): "null"}
Types = dict[str, tuple[type, ...]]
FIRST: Types = {
    "schema_version": (int,),
    "method": (str, type(None)),
    "options": (dict,),
    "budget": (int, float, type(None)),
    "compression": (dict, type(None)),
    "base_model": (str,),
    "weights_sha256": (str,),
    "processor_class": (str, type(None)),
    "versions": (dict,),
}
# What each schema must hold, and may: from the second on ``files`` gives the hash of each file, before it names them.
TYPES: dict[int, Types] = {1: FIRST, 2: {**FIRST, "files": (dict,), SEAL: (str,)}}
LATER: dict[int, Types] = {1: {"files": (list,), "adapter": (dict,)}, 2: {"adapter": (dict,)}}


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


def sealed(config: dict[str, Any]) -> dict[str, Any]:
    """``config`` with the hash of itself, so that a change of it is noticed."""
    content = {key: value for key, value in config.items() if key != SEAL}
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return {**content, SEAL: hashlib.sha256(text.encode()).hexdigest()}


def read_config(folder: Path) -> dict[str, Any]:
    """The checked content of ``vtc_config.json``. Raises ``CheckpointError``."""
    path = folder / CONFIG
    try:
        config = read_json(path)
    except FileNotFoundError:
        raise CheckpointError(
            f"{folder} holds no {CONFIG}: it was not saved by vtc.save, or saving was cut off"
        ) from None
    except CheckpointError as error:
        raise CheckpointError(f"{error}; save the model again") from error
    schema = config.get("schema_version")
    if type(schema) is not int or schema not in TYPES:
        raise CheckpointError(
            f"{path} has schema version {brief(schema)}, this vtc ({__version__}) reads {', '.join(map(str, TYPES))}; "
            "load it with the version it names under 'versions'"
        )
    types, later = TYPES[schema], LATER[schema]
    missing, unknown = sorted(set(types) - set(config)), sorted(set(config) - {*types, *later})
    if missing or unknown:
        raise CheckpointError(
            f"{path}: missing keys {brief(missing)}, unknown keys {brief(unknown)}; save the model again"
        )
    for name, kinds in {**types, **{name: kind for name, kind in later.items() if name in config}}.items():
        if type(config[name]) not in kinds:
            told = " or ".join(dict.fromkeys(WORDS[kind] for kind in kinds))
            raise CheckpointError(f"{path}: {name!r} must be {told}, not {brief(config[name])}; save the model again")
    if SEAL in types and sealed(config)[SEAL] != config[SEAL]:
        raise CheckpointError(
            f"{path} was changed after it was written; load the folder that it came from, change the model in Python, "
            "and vtc.save it again"
        )
    _check_values(path, config)
    return config


def _check_values(path: Path, config: dict[str, Any]) -> None:
    if (config["method"] is None) != (config["budget"] is None) or config["method"] is None and config["options"]:
        raise CheckpointError(f"{path}: 'method' and 'budget' must both be null or both be given; save the model again")
    files, adapter = config.get("files", []), config.get("adapter")
    for name in files:
        safe_path(name, str(path))
    named = files if isinstance(files, list) else [*files, *files.values()]
    if not all(isinstance(each, str) for each in named) or not (
        adapter is None or {k: type(v) for k, v in adapter.items()} == ADAPTER_KEYS
    ):
        raise CheckpointError(
            f"{path}: 'files' are names with their hashes, 'adapter' is name and sha256; save the model again"
        )


def brief(value: Any) -> str:
    """``repr``, as much of it as an error can show."""
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}…"


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
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); save the model again") from error


def check_contents(folder: Path, config: dict[str, Any]) -> None:
    """Raises ``CheckpointError`` unless each file of ``folder`` is the one that was saved, byte by byte, and none is
    there that transformers would take for a part of them. Files of the first schema, which has one hash for all
    weights, are believed where they are no weights, with a warning."""
    files = config.get("files", [])
    if config["schema_version"] == 1:
        check_whole(folder, files)
        found = contents_sha256(folder)
        if found != config["weights_sha256"]:
            raise CheckpointError(
                f"{folder}: the weights hash to {found[:12]}… and {CONFIG} names {config['weights_sha256'][:12]}…; "
                "the files are damaged or belong to another model, save again"
            )
        warnings.warn(
            f"{folder} was saved by an older vtc, which hashed the weights and not config.json or the processor: a "
            "change of those is not noticed; vtc.save the model again",
            stacklevel=3,
        )
        return
    for name, wanted in files.items():
        try:
            found = file_sha256(folder / name)
        except OSError as error:
            raise CheckpointError(
                f"{folder / name} was saved and cannot be read ({error.strerror}); copy the whole folder, or save again"
            ) from error
        if found != wanted:
            raise CheckpointError(
                f"{folder / name} hashes to {found[:12]}… and was saved as {wanted[:12]}…: it is damaged, changed or "
                "belongs to another model; copy it again, or change the loaded model in Python and vtc.save it"
            )
    check_nothing_added(folder, files)


def check_nothing_added(folder: Path, files: Collection[str]) -> None:
    """Raises ``CheckpointError`` for what transformers would read besides ``files``. A processor is free where none was
    saved: then all of it is one's own."""
    read = MODEL + (PROCESSOR if any(reads(name, PROCESSOR) for name in files) else ())
    for path in sorted(path for path in folder.iterdir() if reads(path.name, read)):
        names = [f"{path.name}/{name}" for name in names_in(path)] if path.is_dir() else [path.name]
        for name in (name for name in names if name not in files):
            raise CheckpointError(
                f"{folder / name} was not saved with this model and would be loaded into it or its processor; move it "
                "away, or change the loaded ones in Python and vtc.save them"
            )
