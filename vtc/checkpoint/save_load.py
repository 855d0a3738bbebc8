"""Save and load what vtc changes in a model, patch and weights, and adapters of PEFT: ``vtc_config.json`` beside the
model's own files.

Strict in both directions. A folder is published whole: what stands at its name is the old checkpoint or the new one,
whenever saving ends.
"""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from vtc.checkpoint import peft, restore, serving
from vtc.checkpoint.card import CARD, write_card
from vtc.checkpoint.config import (
    CONFIG,
    SCHEMA,
    brief,
    check_contents,
    contents_sha256,
    described,
    method_from,
    read_config,
    sealed,
)
from vtc.checkpoint.learned import check_asked, load_learned, save_learned
from vtc.checkpoint.untrusted import check_safe, explained, wants_trust
from vtc.checkpoint.verify import check_copy
from vtc.errors import CheckpointError, UnknownName, VTCError
from vtc.files import folders
from vtc.files.digest import file_sha256, versions
from vtc.methods.base import Method
from vtc.models.inspection import unwrapped
from vtc.patching.api import patch_of
from vtc.patching.patch import Patch
from vtc.tokens import Budget
from vtc.weights import formats
from vtc.weights.formats import hf

ERRORS = (ValueError, TypeError, KeyError, AttributeError, OverflowError)  # what options of wrong kinds end in


def save(
    model: nn.Module,
    folder: str | os.PathLike,
    processor: Any = None,
    *,
    format: str = "vtc",
    verify: bool = False,
    keep_original: str | os.PathLike | None = None,
    serve: str | None = None,
) -> Path:
    """Write model, patch, the adapter of a ``PeftModel`` and (when given) processor to ``folder``, with a
    model card.

    A checkpoint that is there already is replaced whole, and other files in it stay. format: of compressed weights,
    "vtc" (every term, bit-equal) or "compressed-tensors" (plain 4 and 8 bit integers, read by transformers and vLLM
    without vtc). verify: load what was written, compare tensors and logits, and only then publish it; needs memory for
    a second model. keep_original: the folder of the checkpoint that was compressed; it is kept in ``folder``, as its
    difference from the compressed weights where that is shorter, for ``vtc restore`` (needs zstandard). serve: a server
    that finds method and budget in the folder's ``config.json``, "vllm": ``vllm serve folder`` then needs no options.

    Raises ``CheckpointError`` for a model with no patch, compressed weights or adapter, a method that ``vtc.load``
    would not find by its name and options, a folder that is not vtc's or may not be written, a full disk, a copy that
    differs, or weights that would replace those which an original is kept beside.
    """
    check_saveable(model, format)
    compression = compression_of(model)
    keys = None
    if serve is not None:
        serving.check_weights(serve, compression and format, peft.adapted(model) is not None)
        keys = serving.keys_for(serve, unwrapped(model), patch_of(model))
    folder = Path(os.path.realpath(folder))
    original = None if keep_original is None else Path(keep_original)
    if original is not None and compression is None:
        raise CheckpointError("keep_original is for compressed weights; call vtc.compress first, or leave it out")
    folders.recover(folder)
    folders.check_replaceable(folder, CONFIG)
    with folders.replacing(folder) as temporary:
        adapter = write(model, temporary, processor, format)
        if keys is not None:
            serving.make_ready(temporary, keys)
        folders.keep_named(folder, temporary, earlier(folder))
        write_config(model, temporary, processor, format, adapter)
        restore.check_not_lost(folder, temporary, original)
        if verify:
            check_copy(model, temporary, load, format)
        if original is not None:
            restore.keep_beside(compression.manifest, original, temporary)
        write_card(temporary, read_config(temporary), folder / CARD)
        folders.keep_others(folder, temporary, replaced=(peft.FOLDER,))
    return folder


def check_saveable(model: nn.Module, format: str) -> None:
    """Raises ``CheckpointError`` for a model that cannot be saved."""
    if format not in formats.registry:
        raise CheckpointError(f"there is no format {format!r}; there are: {', '.join(formats.registry)}")
    compression, plain = compression_of(model), unwrapped(model)
    if peft.adapted(model) is None and patch_of(model) is None and compression is None:
        raise CheckpointError(
            "this model has no patch to save, no compressed weights and no adapter; call vtc.patch or vtc.compress "
            "first, or model.save_pretrained alone"
        )
    if not hasattr(plain, "save_pretrained"):
        raise CheckpointError(
            f"{type(plain).__name__} is no model of transformers; save its state_dict, patch it again when loaded"
        )
    patch = patch_of(model)
    if patch is not None:
        check_readable(patch.method, patch.budget)
    if format != "vtc" and compression is None:
        raise CheckpointError(f"format {format!r} is for compressed weights; call vtc.compress first, or leave it out")


def compression_of(model: nn.Module) -> Any:
    """The ``VTCConfig`` of a compressed model, None of any other."""
    return hf.config_of(unwrapped(model))


def check_readable(method: Method, budget: Budget) -> None:
    """Raises ``CheckpointError`` for a method that ``vtc.load`` would not find by its name, or find otherwise."""
    try:
        told = json.loads(json.dumps({**described(method), "budget": budget.value}, allow_nan=False))
        found, least = method_from(told), Budget.of(told["budget"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the method {type(method).__qualname__} cannot be saved ({error}): vtc.load finds it by the name it is "
            "registered under, with options of plain JSON; decorate its class with @vtc.methods.register(name), in a "
            "module that is imported before vtc.load or is an entry point of vtc.methods"
        ) from error
    if type(found) is not type(method) or found != method or least != budget:
        raise CheckpointError(
            f"the method {method!r} cannot be saved: vtc.load would make it {found!r} of {type(found).__module__}; "
            "give it a name of its own, and options that JSON holds, lists as tuples"
        )


def earlier(folder: Path) -> list[str]:
    """What an older save wrote into ``folder`` and a new one keeps where it writes none of its own: a processor."""
    try:
        names = read_config(folder).get("files", [])
    except CheckpointError:
        return []
    return [name for name in names if not name.startswith(f"{peft.FOLDER}/")]


def write(model: Any, folder: Path, processor: Any, format: str) -> dict[str, str] | None:
    """Fill the empty ``folder``; what is to be told of an adapter. Raises ``OSError`` for a full disk."""
    patch, plain = patch_of(model), unwrapped(model)
    adapted, adapter = peft.adapted(model), None
    with nullcontext() if adapted is None else peft.adapters_aside(plain):
        with nullcontext() if patch is None else patch.learned_aside():
            formats.registry[format](plain, folder)
        if patch is not None:
            save_learned(patch.method.module, folder)
    if adapted is not None:
        adapter = peft.save_adapters(adapted, folder / peft.FOLDER)
    if processor is not None:
        save_processor(processor, folder)
    return adapter


def save_processor(processor: Any, folder: Path) -> None:
    """``save_pretrained``. Tokenizers raise a bare ``Exception`` where the disk is full, here an ``OSError``."""
    try:
        processor.save_pretrained(folder)
    except Exception as error:
        raise OSError(str(error)) if type(error) is Exception else error from error


def write_config(model: Any, folder: Path, processor: Any, format: str, adapter: dict[str, str] | None) -> None:
    """Tell of all that was written into ``folder``."""
    patch, compression, plain = patch_of(model), compression_of(model), unwrapped(model)
    config = {
        "schema_version": SCHEMA,
        **(dict(method=None, options={}) if patch is None else described(patch.method)),
        "budget": None if patch is None else patch.budget.value,
        "compression": None if compression is None else told(compression.manifest, format),
        "base_model": getattr(plain.config, "_name_or_path", "") or type(plain).__name__,
        "weights_sha256": contents_sha256(folder),
        "processor_class": None if processor is None else type(processor).__name__,
        "versions": versions(),
        "files": {name: file_sha256(folder / name) for name in folders.names_in(folder)},
        **({} if adapter is None else {"adapter": adapter}),
    }
    (folder / CONFIG).write_text(json.dumps(sealed(config), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def told(manifest: dict[str, Any], format: str) -> dict[str, Any]:
    """What was done to the weights. In full only where ``config.json`` is for other readers: else it holds the rest."""
    return {"recipe": manifest.get("recipe")} if format == "vtc" else manifest


def load(folder: str | os.PathLike, **kwargs: Any) -> nn.Module:
    """The model saved in ``folder``, compressed and patched as it was, as a ``PeftModel`` where it was one. ``kwargs``
    go to ``from_pretrained``.

    Raises ``CheckpointError`` for a missing or malformed config, unknown or missing keys, another schema version, a
    file that is missing or not the one that was saved, byte by byte (see ``vtc.checkpoint.config``), or learned tensors
    that do not fit the method. A folder's code is never run, nor a pickle opened.
    """
    folder = Path(folder)
    folders.recover(Path(os.path.realpath(folder)))
    config = read_config(folder)
    check_contents(folder, config)
    patched = config["method"] is not None
    try:
        method, budget = (method_from(config), Budget.of(config["budget"])) if patched else (None, None)
    except ERRORS as error:
        hint = "; import the module that registers it first" if isinstance(error, UnknownName) else ""
        raise CheckpointError(f"{folder / CONFIG}: {error}{hint}") from error
    model = from_pretrained(folder, kwargs)
    if method is not None and budget is not None:
        check_asked(method, model, folder)
        try:
            patch = Patch(model, method, budget).install()
        except ERRORS as error:
            raise CheckpointError(f"{folder / CONFIG}: {error}") from error
        load_learned(patch.method.module, folder)
    return peft.load_adapters(model, folder / peft.FOLDER, config.get("adapter"))


def from_pretrained(folder: Path, kwargs: dict[str, Any]) -> Any:
    """The plain model in ``folder``, all of its weights from there."""
    from transformers import AutoModelForImageTextToText

    check_safe(folder)
    hf.register_with_transformers()
    safe = {"trust_remote_code": False, **kwargs, "use_safetensors": True}  # without the first it would ask to run code
    safe["ignore_mismatched_sizes"] = False  # they would be random
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, **safe)
    except VTCError as error:  # of what config.json says about compressed layers
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    except ValueError as error:
        if not wants_trust(error):
            raise
        raise CheckpointError(f"{folder}: {explained(error)}") from error
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        raise CheckpointError(
            f"{folder}: weights and model do not fit, by the shapes of some; save it again"
        ) from error
    model, info = loaded
    lost = {kind: sorted(map(str, keys)) for kind, keys in info.items() if keys and kind.endswith("_keys")}
    if lost:
        raise CheckpointError(
            f"{folder}: weights and model do not fit ({brief(lost)}); save the plain model, without adapters"
        )
    return model
