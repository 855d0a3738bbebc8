"""What a folder of weights is known by: the hash of its weights, and the versions that made it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from vtc.errors import CheckpointError
from vtc.version import __version__


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


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes. Raises ``OSError``."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions that decide what a result means."""
    import torch
    import transformers

    return {"vtc": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
