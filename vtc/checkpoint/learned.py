"""What a method learned, in a file of its own beside the model's: ``vtc_adapter.safetensors``, strict."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtc.errors import CheckpointError
from vtc.methods.base import Method
from vtc.weights.lossless.tensorfile import Place, read_head

ADAPTER = "vtc_adapter.safetensors"
LEAST = 4096  # no option below this is taken for a size that the file must hold


def save_learned(module: nn.Module | None, folder: Path) -> None:
    """Write the parameters and buffers of ``module``; nothing for a method that learns nothing."""
    from safetensors.torch import save_file

    if module is not None:
        held = {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
        save_file(held, folder / ADAPTER, metadata={"format": "pt"})


def load_learned(module: nn.Module | None, folder: Path) -> None:
    """Fill ``module`` from ``folder``. Raises ``CheckpointError`` for a file that is missing, should not be there or
    cannot be read, and for every tensor that is missing, unexpected or of another shape."""
    path = folder / ADAPTER
    if module is None:
        if path.exists():
            raise CheckpointError(
                f"{path} holds what a method learned, and the saved method learns nothing: save again"
            )
        return
    found = read(path)
    check_fits(path, found, module.state_dict())
    module.load_state_dict(found)


def check_asked(method: Method, model: nn.Module, folder: Path) -> None:
    """Raises ``CheckpointError`` unless the file in ``folder`` is there and holds what ``method`` would learn on
    ``model``, by names and shapes: asked before anything of that size is made."""
    path = folder / ADAPTER
    if not method.learns:
        return  # ``load_learned`` says what is too much
    held = path.exists()
    found = {place.name: place for place in read_head(path)[1]} if held else {}
    most = max(LEAST, sum(math.prod(place.shape) for place in found.values()))
    for name, value in sorted(numbers(dataclasses.asdict(method))):
        if value > most and not held:
            raise missing(path)
        if value > most:
            raise CheckpointError(
                f"{path} holds {most} numbers at most, and the option {name} asks for {value}; save again"
            )
    try:
        with torch.device("meta"):
            module = method.build(model)
    except (RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{path}: its options cannot be built ({error}); save again") from error
    if module is not None and not held:
        raise missing(path)
    check_fits(path, found, {} if module is None else module.state_dict())


def missing(path: Path) -> CheckpointError:
    return CheckpointError(
        f"{path} is missing, so what the method learned is lost; copy the whole folder, or save again"
    )


def numbers(options: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number among the options of a method, with the option's name."""
    if isinstance(options, dict):
        for key, value in options.items():
            yield from numbers(value, key)
    elif isinstance(options, list | tuple):
        for value in options:
            yield from numbers(value, name)
    elif isinstance(options, int | float) and not isinstance(options, bool):
        yield name, options


def check_fits(path: Path, found: Mapping[str, Tensor | Place], wanted: Mapping[str, Tensor]) -> None:
    """Raises ``CheckpointError`` unless ``found``, read from ``path``, has the names and shapes of ``wanted``."""
    missing, unexpected = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or unexpected:
        raise CheckpointError(f"{path}: missing tensors {missing[:5]}, unexpected tensors {unexpected[:5]}; save again")
    for name, tensor in wanted.items():
        if tuple(found[name].shape) != tuple(tensor.shape):
            raise CheckpointError(
                f"{path}: {name} has shape {tuple(found[name].shape)} and its options ask for {tuple(tensor.shape)}; "
                "load it with the options and the base it was trained with"
            )


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise missing(path) from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); save again") from error
