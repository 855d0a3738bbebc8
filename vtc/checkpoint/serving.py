"""Servers that a saved folder can be made ready for: what each must read in the model's ``config.json``.

A server is an entry point of the group ``vtc.servers``: a function of the name of the model's class, the method and the
budget that gives the keys to write, or raises ``VTCError`` for what it cannot serve.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from vtc.errors import CheckpointError
from vtc.files.atomic import write_json
from vtc.files.strict import read_json
from vtc.patching.patch import Patch

GROUP = "vtc.servers"


def keys_for(server: str, model: Any, patch: Patch | None) -> dict[str, Any]:
    """What to write for it. Raises ``CheckpointError`` for a server that there is not, or a model without a patch."""
    found = {point.name: point for point in entry_points(group=GROUP)}
    if server not in found:
        known = ", ".join(sorted(found)) or "none, so install vtc-vlm again"
        raise CheckpointError(f"there is no server {server!r}; there are: {known}")
    if patch is None:
        raise CheckpointError(f"serve={server!r} is for a patched model; call vtc.patch first, or leave it out")
    return found[server].load()(type(model).__name__, patch.method, patch.budget)


def check_weights(server: str, format: str | None, adapter: bool) -> None:
    """Raises ``CheckpointError`` for weights that a server would not read: format: of compressed ones, None without."""
    if format == "vtc":
        raise CheckpointError(
            f'serve={server!r} is for weights that servers read, and the format "vtc" is read by vtc alone; save with '
            'format="compressed-tensors", or compress nothing'
        )
    if adapter:
        raise CheckpointError(
            f"serve={server!r}: the server would leave out the adapter; merge_and_unload() first, or leave serve out "
            "and start vtc serve with --enable-lora --lora-modules NAME=FOLDER/peft_adapter"
        )


def make_ready(folder: Path, keys: dict[str, Any]) -> None:
    """Write them into the folder's ``config.json``."""
    file = folder / "config.json"
    write_json(file, {**read_json(file), **keys})
