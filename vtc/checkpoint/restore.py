"""Back from compressed weights to the exact original: ``original.vtcz`` in their folder.

A tensor is kept as it is, or, where that is shorter, as its difference from what the compressed weights make of it.
What compression left alone then costs nothing. The file names both checkpoints by hash and refuses any other.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vtc.errors import CheckpointError
from vtc.files.digest import versions, weights_sha256
from vtc.weights.formats.manifest import MANIFEST, Manifest
from vtc.weights.lossless.approximate import Approximate
from vtc.weights.lossless.archive import extract, read_index, store
from vtc.weights.lossless.index import Index

ORIGINAL = "original.vtcz"


def keep_original(original: str | os.PathLike, into: str | os.PathLike) -> Index:
    """Keep the checkpoint folder ``original`` in the folder ``into`` of its compressed weights, to ``restore`` later.

    Raises ``CheckpointError`` when either holds no safetensors, or a manifest in ``into`` names another original.
    """
    original, into = Path(original), Path(into)
    _same_parent(into, weights_sha256(original), original)
    beside = weights_sha256(into)
    return store(original, into / ORIGINAL, Approximate(into).guess, beside)


def keep_beside(told: dict[str, Any], original: Path, into: Path) -> None:
    """Keep ``original`` in ``into``, which ``vtc.save`` fills, with the manifest that names it; told: what
    ``vtc.compress`` wrote down."""
    Manifest.of(told, weights_sha256(original), versions()).write(into)
    keep_original(original, into)


def check_not_lost(folder: Path, saved: Path, original: Path | None) -> None:
    """Raises ``CheckpointError`` where ``saved`` would replace weights in ``folder`` that the original kept there is
    made of, unless the same ``original`` is kept again."""
    if not (folder / ORIGINAL).is_file() or weights_sha256(folder) == weights_sha256(saved):
        return
    if original is None or read_index(folder / ORIGINAL)[0].weights_sha256 != weights_sha256(original):
        raise CheckpointError(
            f"{folder} keeps an original that only the weights there give back; vtc restore it first, or save to "
            "another folder"
        )


def restore(folder: str | os.PathLike, out: str | os.PathLike) -> Path:
    """Write the original of the compressed checkpoint in ``folder`` to ``out``, all files bit for bit.

    Raises ``CheckpointError`` when no original is kept there, when the compressed weights are not those that it was
    kept beside, when the manifest names another, or when it is damaged; ``out`` is then as it was.
    """
    folder = Path(folder)
    path = folder / ORIGINAL
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no {ORIGINAL}: its original was not kept; get it from where it came from"
        )
    index, _ = read_index(path)
    _same_parent(folder, index.weights_sha256, path)
    if index.beside is not None and index.beside != weights_sha256(folder):
        raise CheckpointError(
            f"{path} belongs beside weights that hash to {index.beside[:12]}… and those in {folder} hash to "
            f"{weights_sha256(folder)[:12]}…; put back the ones it was made with"
        )

    def check(written: Path) -> None:
        found = weights_sha256(written)
        if found != index.weights_sha256:
            raise CheckpointError(f"{path}: the weights hash to {found[:12]}…, not {index.weights_sha256[:12]}…")

    return extract(path, Path(out), Approximate(folder).make, check)


def _same_parent(folder: Path, found: str, where: Path) -> None:
    if (folder / MANIFEST).exists():
        parent = Manifest.read(folder).parent_sha256
        if parent != found:
            raise CheckpointError(
                f"{folder / MANIFEST} names an original that hashes to {parent[:12]}…, and {where} is {found[:12]}…"
            )
