"""What a method learned, in a file of its own beside the model's: ``vtc_adapter.safetensors``, strict."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from vtc.errors import CheckpointError

ADAPTER = "vtc_adapter.safetensors"


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


def check_fits(path: Path, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Raises ``CheckpointError`` unless ``found``, read from ``path``, has the names and shapes of ``wanted``."""
    missing, unexpected = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing or unexpected:
        raise CheckpointError(f"{path}: missing tensors {missing[:5]}, unexpected tensors {unexpected[:5]}; save again")
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
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
        raise CheckpointError(
            f"{path} is missing, so what the method learned is lost; copy the whole folder, or save again"
        ) from None
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); save again") from error
