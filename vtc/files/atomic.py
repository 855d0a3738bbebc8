"""Files that are either whole or absent: write to a temporary name, sync, rename."""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vtc.errors import VTCError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
AGAIN = "give the same command: it goes on where it stopped"
REMEDIES = {
    **dict.fromkeys(FULL, f"make room and {AGAIN}"),
    **dict.fromkeys(CLOSED, "give a folder that may be written"),
    **dict.fromkeys((errno.ENOENT, errno.ESTALE), f"put the folder back and {AGAIN}"),
}


def unwritable(path: Path, error: OSError) -> Exception:
    """``error`` in words: a ``VTCError`` that names ``path`` and the remedy; ``error`` itself where none is known."""
    remedy = REMEDIES.get(error.errno or 0)
    return VTCError(f"{path} cannot be written ({error.strerror}); {remedy}") if remedy else error


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, sync it and rename it onto ``path``.

    On a full disk, or where nothing may be written, it raises ``VTCError`` and leaves what was there."""
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
        raise unwritable(path, error) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """In UTF-8; half a character (a lone surrogate) is written as ``\\ud800``, which JSON reads as the same."""
    data = text.encode("utf-8", "backslashreplace")
    write_atomic(path, lambda temporary: temporary.write_bytes(data))


def write_json(path: Path, data: Any) -> None:
    """JSON with sorted keys, so equal data is equal bytes. NaN becomes null."""
    text = json.dumps(finite(data), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    write_text(path, re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text))  # UTF-8 has no halves


def finite(data: Any) -> Any:
    """``data`` with NaN and infinities as None."""
    if isinstance(data, float):
        return data if data - data == 0 else None
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    return [finite(value) for value in data] if isinstance(data, (list, tuple)) else data
