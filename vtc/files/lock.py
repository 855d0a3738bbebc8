"""One writer a folder: a lock that the system lets go when the process ends, however it ends."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from vtc.errors import RunRefused


def lock(folder: Path) -> FileLock:
    """An exclusive lock on ``folder``, until its ``release()``. Raises ``RunRefused`` where another process has it."""
    held = FileLock(folder / ".lock")
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise RunRefused(
            f"{folder} is being written by another process; wait for it, or give another --output"
        ) from None
    return held
