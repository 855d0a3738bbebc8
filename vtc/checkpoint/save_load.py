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

from vtc.checkpoint import peft, restore
from vtc.checkpoint.card import CARD, write_card
from vtc.checkpoint.config import CONFIG, SCHEMA, contents_sha256, described, method_from, read_config
from vtc.checkpoint.learned import load_learned, save_learned
from vtc.checkpoint.verify import check_copy
from vtc.errors import CheckpointError
from vtc.files import folders
from vtc.files.digest import versions
from vtc.models.inspection import unwrapped
from vtc.patching.api import patch_of
from vtc.patching.patch import Patch
from vtc.tokens import Budget
from vtc.weights import formats
from vtc.weights.formats import hf


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
                check_copy(model, temporary, load, format)
            if original is not None:
                restore.keep_beside(compression.manifest, original, temporary)
            write_card(temporary, read_config(temporary), folder / CARD)
            folders.keep_others(folder, temporary, replaced=(peft.FOLDER,))
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written ({error.strerror or error}); make room or give another folder (what was there "
            "is as it was)"
        ) from error
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
    if format != "vtc" and compression is None:
        raise CheckpointError(f"format {format!r} is for compressed weights; call vtc.compress first, or leave it out")


def compression_of(model: nn.Module) -> Any:
    """The ``VTCConfig`` of a compressed model, None of any other."""
    return hf.config_of(unwrapped(model))


def write(model: Any, folder: Path, processor: Any, format: str) -> None:
    """Fill the empty ``folder``. Raises ``OSError`` when the disk does not take it."""
    from safetensors import SafetensorError

    patch, compression, plain = patch_of(model), compression_of(model), unwrapped(model)
    adapted, adapter = peft.adapted(model), None
    try:
        with nullcontext() if adapted is None else peft.adapters_aside(plain):
            with nullcontext() if patch is None else patch.learned_aside():
                formats.registry[format](plain, folder)
            if patch is not None:
                save_learned(patch.method.module, folder)
        if adapted is not None:
            adapter = peft.save_adapters(adapted, folder / peft.FOLDER)
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
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def told(manifest: dict[str, Any], format: str) -> dict[str, Any]:
    """What was done to the weights. In full only where ``config.json`` is for other readers: else it holds the rest."""
    return {"recipe": manifest.get("recipe")} if format == "vtc" else manifest


def load(folder: str | os.PathLike, **kwargs: Any) -> nn.Module:
    """The model saved in ``folder``, compressed and patched as it was, as a ``PeftModel`` where it was one. ``kwargs``
    go to ``from_pretrained``.

    Raises ``CheckpointError`` for a missing or malformed config, unknown or missing keys, another schema version, a
    file that is missing, weights or an adapter that are not the ones that were saved, or learned tensors that do not
    fit the method.
    """
    from transformers import AutoModelForImageTextToText

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
    hf.register_with_transformers()
    kwargs = {"trust_remote_code": False, **kwargs}  # left out, transformers would ask whether to run a folder's code
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
    return peft.load_adapters(model, folder / peft.FOLDER, config.get("adapter"))
