"""One writer a folder: a lock that the system lets go when the process ends, however it ends."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from vtc.errors import RunRefused
from vtc.files.atomic import unwritable


def lock(folder: Path) -> FileLock:
    """An exclusive lock on ``folder``, which is made if need be, until its ``release()``. Raises ``RunRefused`` where
    another process has it, ``VTCError`` where it cannot be written."""
    held = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=0)
    except Timeout:
        raise RunRefused(
            f"{folder} is being written by another process; wait for it, or give another --output"
        ) from None
    except OSError as error:
        raise unwritable(folder, error) from None
    return held
