"""Save and load what vtc changes in a model, patch and weights, and adapters of PEFT: ``vtc_config.json`` beside the
model's own files.

Strict in both directions. A folder is published whole: what stands at its name is the old checkpoint or the new one,
whenever saving ends.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

import vtc
from vtc import folders, peft_adapter
from vtc.adapter import load_learned, save_learned
from vtc.card import CARD, write_card
from vtc.changes import Patch
from vtc.errors import CheckpointError
from vtc.methods import registry
from vtc.methods.base import Method
from vtc.models.inspection import unwrapped
from vtc.patching import patch_of
from vtc.spend import Spend
from vtc.tokens import Budget

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
FORMATS = ("vtc", "compressed-tensors")


def save(
    model: nn.Module,
    folder: str | os.PathLike,
    processor: Any = None,
    *,
    format: str = "vtc",
    verify: bool = False,
    keep_original: str | os.PathLike | None = None,
) -> Path:
    """Write model, patch, the adapter of a ``PeftModel`` and (when given) processor to ``folder``, with a
    model card.

    A checkpoint that is there already is replaced whole, and other files in it stay. format: of compressed weights,
    "vtc" (every term, bit-equal) or "compressed-tensors" (plain 4 and 8 bit integers, read by transformers and vLLM
    without vtc). verify: load what was written, compare tensors and logits, and only then publish it; needs memory for
    a second model. keep_original: the folder of the checkpoint that was compressed; it is kept in ``folder``, as its
    difference from the compressed weights where that is shorter, for ``vtc restore`` (needs zstandard).

    Raises ``CheckpointError`` for a model with no patch, compressed weights or adapter, a folder that is not vtc's, a
    full disk, a copy that differs, or weights that would replace those which an original is kept beside.
    """
    from vtc.weights import restore

    check_saveable(model, format)
    folder = Path(os.path.realpath(folder))
    original = None if keep_original is None else Path(keep_original)
    compression = compression_of(model)
    if original is not None and compression is None:
        raise CheckpointError("keep_original is for compressed weights; call vtc.compress first, or leave it out")
    folders.recover(folder)
    folders.check_replaceable(folder, CONFIG)
    try:
        with folders.replacing(folder) as temporary:
            write(model, temporary, processor, format)
            restore.check_not_lost(folder, temporary, original)
            if verify:
                from vtc.verification import check_copy

                check_copy(model, temporary, format)
            if original is not None:
                restore.keep_beside(compression.manifest, original, temporary)
            write_card(temporary, read_config(temporary), folder / CARD)
            folders.keep_others(folder, temporary, replaced=(peft_adapter.FOLDER,))
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written ({error.strerror or error}); make room or give another folder (what was there "
            "is as it was)"
        ) from error
    return folder


def check_saveable(model: nn.Module, format: str) -> None:
    """Raises ``CheckpointError`` for a model that cannot be saved."""
    if format not in FORMATS:
        raise CheckpointError(f"there is no format {format!r}; there are: {', '.join(FORMATS)}")
    compression, plain = compression_of(model), unwrapped(model)
    if peft_adapter.adapted(model) is None and patch_of(model) is None and compression is None:
        raise CheckpointError(
            "this model has no patch to save, no compressed weights and no adapter; call vtc.patch or vtc.compress "
            "first, or model.save_pretrained alone"
        )
    if not hasattr(plain, "save_pretrained"):
        raise CheckpointError(
            f"{type(plain).__name__} is no model of transformers; save its state_dict, patch it again when loaded"
        )
    if format != "vtc" and compression is None:
        raise CheckpointError(f"format {format!r} is for compressed weights; call vtc.compress first, or leave it out")


def compression_of(model: nn.Module) -> Any:
    """The ``VTCConfig`` of a compressed model, None of any other."""
    from vtc.weights import hf

    return hf.config_of(unwrapped(model))


def write(model: Any, folder: Path, processor: Any, format: str) -> None:
    """Fill the empty ``folder``. Raises ``OSError`` when the disk does not take it."""
    from safetensors import SafetensorError

    patch, compression, plain = patch_of(model), compression_of(model), unwrapped(model)
    adapted, adapter = peft_adapter.adapted(model), None
    try:
        with nullcontext() if adapted is None else peft_adapter.adapters_aside(plain):
            with nullcontext() if patch is None else patch.learned_aside():
                save_weights(plain, folder, format)
            if patch is not None:
                save_learned(patch.method.module, folder)
        if adapted is not None:
            adapter = peft_adapter.save_adapters(adapted, folder / peft_adapter.FOLDER)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    if processor is not None:
        processor.save_pretrained(folder)
    config = {
        "schema_version": SCHEMA,
        **(dict(method=None, options={}) if patch is None else described(patch.method)),
        "budget": None if patch is None else patch.budget.value,
        "compression": None if compression is None else told(compression.manifest, format),
        "base_model": getattr(plain.config, "_name_or_path", "") or type(plain).__name__,
        "weights_sha256": contents_sha256(folder),
        "processor_class": None if processor is None else type(processor).__name__,
        "versions": versions(),
        "files": folders.names_in(folder),
        **({} if adapter is None else {"adapter": adapter}),
    }
    write_json(folder / CONFIG, config)


def told(manifest: dict[str, Any], format: str) -> dict[str, Any]:
    """What was done to the weights. In full only where ``config.json`` is for other readers: else it holds the rest."""
    return {"recipe": manifest.get("recipe")} if format == "vtc" else manifest


def save_weights(plain: Any, folder: Path, format: str) -> None:
    """The model's own files."""
    if format == "compressed-tensors":
        from vtc.weights import compressed_tensors

        compressed_tensors.save_pretrained(plain, folder)
    else:
        plain.save_pretrained(folder)


def load(folder: str | os.PathLike, **kwargs: Any) -> nn.Module:
    """The model saved in ``folder``, compressed and patched as it was, as a ``PeftModel`` where it was one. ``kwargs``
    go to ``from_pretrained``.

    Raises ``CheckpointError`` for a missing or malformed config, unknown or missing keys, another schema version, a
    file that is missing, weights or an adapter that are not the ones that were saved, or learned tensors that do not
    fit the method.
    """
    from transformers import AutoModelForImageTextToText

    from vtc.weights import hf

    folder = Path(folder)
    folders.recover(Path(os.path.realpath(folder)))
    config = read_config(folder)
    folders.check_whole(folder, config.get("files", ()))
    found = contents_sha256(folder)
    if found != config["weights_sha256"]:
        raise CheckpointError(
            f"{folder}: the weights hash to {found[:12]}… and {CONFIG} names {config['weights_sha256'][:12]}…; "
            "the files are damaged or belong to another model, save again"
        )
    patched = config["method"] is not None
    try:
        method, budget = (method_from(config), Budget.of(config["budget"])) if patched else (None, None)
    except (TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}") from error
    hf.register()
    loaded: Any = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, **kwargs)
    model, info = loaded
    lost = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys and kind.endswith("_keys")}
    if lost:
        raise CheckpointError(
            f"{folder}: weights and model do not fit ({lost}); save the plain model, without adapters"
        )
    if method is not None and budget is not None:
        patch = Patch(model, method, budget).install()
        load_learned(patch.method.module, folder)
    return peft_adapter.load_adapters(model, folder / peft_adapter.FOLDER, config.get("adapter"))


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
            f"{path} has schema version {config.get('schema_version')!r}, this vtc ({vtc.__version__}) reads {SCHEMA}; "
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
