"""Adapters of PEFT on a model, saved beside its plain weights in PEFT's own files, in the folder ``peft_adapter``."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from vtc.checkpoint.learned import check_fits, read
from vtc.checkpoint.untrusted import INITIAL, OUTSIDE, check_adapter
from vtc.errors import CheckpointError
from vtc.files.strict import read_json
from vtc.models.inspection import unwrapped
from vtc.patching.api import patch_of
from vtc.patching.patch import LEARNED

FOLDER = "peft_adapter"
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"  # as PEFT names them


def adapted(model: Any) -> Any:
    """The ``PeftModel`` around a model, None without adapters. Raises ``CheckpointError`` for adapters that are there
    and would not come back as they are."""
    plain = unwrapped(model)
    while model is not plain and not hasattr(model, "get_base_model"):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module
    configs = getattr(plain, "peft_config", None) or {}
    if not configs:
        return None
    if model is plain:
        raise CheckpointError("this model carries adapters; give the PeftModel around it, or merge_and_unload() first")
    check_adapter({k: v for k, v in vars(next(iter(configs.values()))).items() if k in OUTSIDE}, "the adapter")
    if len(configs) > 1 or next(iter(configs.values())).is_prompt_learning:
        raise CheckpointError(
            f"this model carries {', '.join(configs)}: one adapter that changes layers can be saved; delete_adapter "
            "the others, or save prompts apart"
        )
    layers = [m for m in plain.modules() if is_tuner(m)]
    if any(getattr(m, "merged", False) or getattr(m, "disable_adapters", False) for m in layers):
        raise CheckpointError("the adapter is merged or disabled; unmerge_adapter() and enable_adapter_layers() first")
    return model


def is_tuner(module: nn.Module) -> bool:
    """Whether PEFT put this module where another one was."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    return isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)


@contextmanager
def adapters_aside(model: nn.Module) -> Iterator[None]:
    """The plain model inside a ``PeftModel`` without its adapters: it saves as what they were put on."""
    undo: list[Callable[[], None]] = []
    _swap(model, undo)
    try:
        yield
    finally:
        for call in undo:
            call()


def _swap(parent: nn.Module, undo: list[Callable[[], None]]) -> None:
    children: dict[str, Any] = dict(parent._modules)
    for name, child in children.items():
        if child is not None and is_tuner(child):
            parent._modules[name] = (
                child.get_base_layer() if hasattr(child, "get_base_layer") else child.original_module
            )
            undo.append(partial(parent._modules.__setitem__, name, child))
        elif child is not None:
            _swap(child, undo)


def save_adapters(model: Any, folder: Path) -> dict[str, str]:
    """Write the adapter of a ``PeftModel``; its entry in ``vtc_config.json``."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    ((name, config),) = model.peft_config.items()
    config = copy.deepcopy(config)
    config.inference_mode = True
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # PiSSA and its like take parts of the base, which is saved without them
    for beginning in INITIAL:
        if hasattr(config, beginning):
            setattr(config, beginning, None)
    folder.mkdir()
    held = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    tensors = {key: tensor.detach().contiguous() for key, tensor in held.items()}
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    config.save_pretrained(folder)
    return {"name": name, "sha256": files_sha256(folder)}


def load_adapters(model: nn.Module, folder: Path, told: Any) -> Any:
    """``model`` as a ``PeftModel`` with the adapter in ``folder``; told: its entry in ``vtc_config.json`` or None.

    Raises ``CheckpointError`` for an adapter that is missing or not told of, another than the one that was saved with
    this base, and for every tensor that is missing, unexpected or of another shape.
    """
    if told is None:
        if folder.exists():
            raise CheckpointError(f"{folder} belongs to another checkpoint: this one was saved without; move it away")
        return model
    found = files_sha256(folder)
    if found != told["sha256"]:
        raise CheckpointError(
            f"{folder}: the adapter hashes to {found[:12]}… and this base was saved with {told['sha256'][:12]}…; it is "
            "damaged or was trained on another base, copy the whole folder again"
        )
    try:
        import torch
        from peft import PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
    except ImportError:
        raise CheckpointError(f"{folder} needs the library peft; pip install 'vtc-vlm[train]'") from None
    check_adapter(read_json(folder / CONFIG), str(folder / CONFIG))
    tensors, patch = read(folder / TENSORS), patch_of(model)
    inside = any(f"{LEARNED}." in key for key in tensors)  # put on before the patch, it left out what that learns
    full = any(tensor.dtype == torch.float32 for tensor in tensors.values())
    try:
        with nullcontext() if patch is None or inside else patch.learned_aside(), torch.random.fork_rng():
            config = PeftConfig.from_pretrained(str(folder))
            config.base_model_name_or_path = None  # the base is in this folder, whatever it was called before
            made: Any = get_peft_model(model, config, told["name"], autocast_adapter_dtype=full)  # type: ignore[arg-type]
        wanted = get_peft_model_state_dict(made, adapter_name=told["name"], save_embedding_layers=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} does not fit this base ({error}); save again") from error
    check_fits(folder / TENSORS, tensors, wanted)
    set_peft_model_state_dict(made, tensors, adapter_name=told["name"])
    return made.eval()


def files_sha256(folder: Path) -> str:
    """SHA-256 over the adapter's two files. Raises ``CheckpointError`` where one is missing."""
    digest = hashlib.sha256()
    for name in (CONFIG, TENSORS):
        try:
            digest.update((folder / name).read_bytes())
        except OSError as error:
            raise CheckpointError(
                f"{folder / name} cannot be read ({error.strerror}), and the model was saved with an adapter; copy the "
                "whole folder, or save again"
            ) from error
    return digest.hexdigest()
