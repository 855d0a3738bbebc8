"""Files of JSON lines that a run goes on from: each line with a checksum, whole or cut off, read as a stream."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from io import RawIOBase
from pathlib import Path
from typing import Any
from zlib import crc32

from vtc.errors import RunRefused
from vtc.eval.results import fields
from vtc.eval.results.rows import Rows

LONGEST = 64_000_000  # bytes of a line; what a question and its answers may be is far below
CHECK = re.compile(rb', "check": "([0-9a-f]{8})"\}\n?\Z')
AHEAD = 1_000_000  # rows that one file may be ahead of what it holds: other ranks have the others
REMEDY = "delete the line and give the same command, which answers it again, or start over with --overwrite"


def write_all(stream: RawIOBase, data: bytes) -> None:
    """A full disk takes a part first, and refuses the rest."""
    while data:
        data = data[stream.write(data) :]


def encode(line: dict[str, Any]) -> bytes:
    """A line, and at its end ``check``: the CRC-32 of the bytes before it. Half characters are escaped, as in JSON."""
    body = json.dumps(line, ensure_ascii=False).encode("utf-8", "backslashreplace")[:-1]
    return body + b', "check": "%08x"}\n' % crc32(body)


def decode(raw: bytes) -> tuple[dict[str, Any], bool]:
    """The line, and whether a checksum stood in it. Raises ``ValueError`` for what was changed since it was written."""
    if len(raw) > LONGEST:
        raise ValueError(f"longer than {LONGEST:,} bytes")
    found = CHECK.search(raw)
    if found and int(found[1], 16) != crc32(raw[: found.start()]):
        raise ValueError("it was changed since it was written: its checksum is another")
    try:
        line = json.loads(raw.decode("utf-8", "surrogatepass"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(line, dict):
        raise ValueError(f"a {type(line).__name__}, not an object")
    if found:
        del line["check"]
    return line, found is not None


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


def failed_rows(path: Path) -> Rows:
    """The rows that at least one cell could not answer."""
    failed = Rows()
    for line in read(path):
        if "error" in line:
            failed.add(line["row"])
    return failed


def read(path: Path, cell: str = "") -> Iterator[dict[str, Any]]:
    """The lines of a results file, streamed and checked; with ``cell`` all that are that cell's, and hardly any other.

    Files from before lines had checksums are read by their fields alone. Raises ``RunRefused`` for a damaged line."""
    mark = json.dumps(cell, ensure_ascii=False).encode() if cell else b""
    rows = AHEAD + path.stat().st_size if path.exists() else 0
    for number, line in numbered(path, mark):
        try:
            fields.check(line, rows)
        except ValueError as error:
            raise damaged(path, number, error) from None
        yield line


def numbered(path: Path, mark: bytes = b"") -> Iterator[tuple[int, dict[str, Any]]]:
    """(number from 1, line) of the lines that hold ``mark``. All have checksums, or none has."""
    if not path.exists():
        return
    summed: set[bool] = set()
    with open(path, "rb") as stream:
        number = 0
        while raw := stream.readline(LONGEST + 1):
            number += 1
            if mark not in raw:  # to look is much cheaper than to parse
                continue
            try:
                line, checked = decode(raw)
                summed.add(checked)
                if len(summed) > 1:
                    raise ValueError("some lines have a checksum, and some have none")
            except ValueError as error:
                raise damaged(path, number, error) from None
            yield number, line


def damaged(path: Path, number: int, error: Exception) -> RunRefused:
    return RunRefused(f"{path}:{number} is damaged ({' '.join(str(error).split())[:200]}); {REMEDY}")
