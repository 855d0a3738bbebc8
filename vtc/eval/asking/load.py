"""A model and its processor from a folder or the hub, with errors that say what to do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

import vtc
from vtc.checkpoint.config import CONFIG
from vtc.checkpoint.learned import ADAPTER
from vtc.checkpoint.peft import FOLDER
from vtc.checkpoint.untrusted import check_safe, explained
from vtc.errors import UnsupportedModel, VTCError
from vtc.eval import scenes

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load(
    model: str, dtype: str = "auto", device: str = "auto", attn: str = "auto", learned: bool = False
) -> tuple[Any, Any]:
    """(model, processor), ready to answer. ``saved`` dtype is the one of the files, ``auto`` the same but float32 on a
    CPU.

    A folder in which ``vtc.save`` left what a method or an adapter of PEFT learned comes back with it where
    ``learned``, and is refused otherwise: the plain model would stand for a trained one.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from vtc.weights.formats import hf

    model = folder_of(model)
    saved = (Path(model) / CONFIG).is_file()  # by vtc: checked by its hashes
    trained = (Path(model) / ADAPTER).is_file() or (Path(model) / FOLDER).is_dir()
    if trained and not learned:
        raise VTCError(
            f"{model} holds what a method or an adapter learned, and this command works on plain models; use vtc eval "
            "or vtc show, vtc.load in a script, or the model it was trained from"
        )
    if dtype not in ("auto", "saved", *DTYPES):
        raise VTCError(f"dtype {dtype!r} is not known; give auto, {', '.join(DTYPES)}")
    if looks_local(model) and not Path(model).is_dir():
        raise VTCError(f"model folder {model} does not exist; give a folder with config.json, or a model id of the hub")
    where = pick_device(device)
    kind = DTYPES.get(dtype, torch.float32 if where == "cpu" and dtype == "auto" else "auto")
    options = {} if attn == "auto" else {"attn_implementation": attn}
    hf.register_with_transformers()
    try:
        with quiet_unless_watched():
            make: Any = vtc.load if saved or trained else AutoModelForImageTextToText.from_pretrained
            if make is not vtc.load:  # which looks itself
                check_safe(model)
            vlm = make(model, dtype=kind, trust_remote_code=False, use_safetensors=True, **options)
            # after the model: vtc.load checks the hashes of the processor's files, too
            processor = AutoProcessor.from_pretrained(model, trust_remote_code=False)  # left out, it would ask
        outer = vtc.patch_of(vlm)
        if outer is not None and not outer.method.learns:
            vtc.unpatch(vlm)  # as of a folder without an adapter: what is asked for is patched anew
    except (OSError, ValueError, ImportError, KeyError, RecursionError) as error:
        raise UnsupportedModel(f"{model} cannot be loaded: {explained(error)}") from error
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is not None and tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    vlm.to(where)  # type: ignore[arg-type]  # transformers types its own wrapper wrongly
    return vlm.eval(), processor


@contextmanager
def quiet_unless_watched() -> Iterator[None]:
    """No progress bars in logs and pipes."""
    shown = logging.is_progress_bar_enabled() and not sys.stderr.isatty()
    if shown:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def folder_of(model: str) -> str:
    """The folder of the testbed's models by their names, ``scenes`` and ``scenes-qwen``, unless one of that name is
    there; any other model as it is."""
    known = scenes.NAMES.get(model)
    return model if known is None or Path(model).is_dir() else str(scenes.checkpoint_path(known))


def looks_local(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.count("/") > 1


def pick_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        name = torch.device(device)
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise VTCError(
            f"device {device!r} cannot be used ({str(error).splitlines()[0][:120]}); give cpu or auto"
        ) from None
    return device
