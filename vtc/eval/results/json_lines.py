"""A results file as lines: one JSON object each, whole or cut off, read as a stream."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from io import RawIOBase
from pathlib import Path
from typing import Any

from vtc.errors import RunRefused


def write_all(stream: RawIOBase, data: bytes) -> None:
    """A full disk takes a part first, and refuses the rest."""
    while data:
        data = data[stream.write(data) :]


def encode(line: dict[str, Any]) -> bytes:
    return (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")


def mend(path: Path) -> None:
    """Cut off a torn last line, which a killed writer may leave."""
    if not path.exists():
        return
    with open(path, "rb+") as stream:
        end = stream.seek(0, os.SEEK_END)
        while end:
            start = max(end - 65536, 0)
            stream.seek(start)
            found = stream.read(end - start).rfind(b"\n")
            if found >= 0:
                stream.truncate(start + found + 1)
                return
            end = start
        stream.truncate(0)


def first_errors(path: Path, count: int) -> list[str]:
    """The reasons of the first ``count`` different errors."""
    reasons = (line["error"] for line in read(path) if "error" in line)
    found: dict[str, None] = {}
    while len(found) < count and (reason := next(reasons, None)) is not None:
        found[reason] = None
    return list(found)


def read(path: Path, cell: str = "") -> Iterator[dict[str, Any]]:
    """The lines of a results file, streamed; with ``cell`` all that are that cell's, and hardly any other."""
    mark = json.dumps(cell, ensure_ascii=False) if cell else ""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as stream:
        for number, text in enumerate(stream, 1):
            if mark not in text:  # to look is much cheaper than to parse
                continue
            try:
                line = json.loads(text)
                whole = "closed" in line or isinstance(line["id"], str) and isinstance(line["row"], int)
                if not whole or not isinstance(line["cell"], str) or not isinstance(line["batch"], int):
                    raise ValueError("no cell, batch, row and id")
            except (ValueError, TypeError, KeyError) as error:
                raise RunRefused(f"{path}:{number} is damaged ({error}); start over with --overwrite") from None
            yield line
