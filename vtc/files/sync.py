"""Waiting for the disk, on every system."""

from __future__ import annotations

import os
from pathlib import Path

WINDOWS = os.name == "nt"


def sync(path: Path) -> None:
    """Wait until the disk has the file ``path``, or the names in the folder ``path``.

    Windows syncs neither folders nor files that may not be written, and asks for a handle that may write."""
    if WINDOWS and (path.is_dir() or not os.access(path, os.W_OK)):
        return
    handle = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_all(path: Path) -> None:
    """``sync`` a file, or a folder and all that is in it."""
    for inside in (*path.rglob("*"), path):
        sync(inside)
