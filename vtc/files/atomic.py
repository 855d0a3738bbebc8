"""Files that are either whole or absent: write to a temporary name, sync, rename."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vtc.errors import VTCError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ROOM = "make room and give the same command: it goes on where it stopped"


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, sync it and rename it onto ``path``.

    Raises ``VTCError`` for a full disk and for a folder that may not be written, and leaves what was there."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        remedy = ROOM if error.errno in FULL else "give another place, or the right to write there"
        raise VTCError(f"{path} cannot be written ({error.strerror or error}); {remedy}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def write_json(path: Path, data: Any) -> None:
    """JSON with sorted keys, so equal data is equal bytes. NaN becomes null."""
    write_text(path, json.dumps(finite(data), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def finite(data: Any) -> Any:
    """``data`` with NaN and infinities as None."""
    if isinstance(data, float):
        return data if data - data == 0 else None
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    return [finite(value) for value in data] if isinstance(data, (list, tuple)) else data
