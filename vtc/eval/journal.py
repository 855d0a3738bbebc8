"""The memory of a run: an append-only ``results.jsonl`` with one writer, that survives being killed at any byte."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vtc.errors import VTCError
from vtc.eval.files import write_json

SYNC_SECONDS = 5.0
OURS = (
    *("results.jsonl", "config.json", "summary.json", "measured.json", "table.md", "pareto.png", "overlays/*.png"),
    *("robustness.json", "robustness.md"),
)
FREE = ("model",)  # recorded, but may be spelled differently when a run goes on


class RunRefused(VTCError):
    """A run folder that must not be written: another writer, other settings, or files that are not ours to mend."""


class Journal:
    """The results of one run folder, open for appending under a lock (a context manager).

    Lines are dicts with ``cell`` and ``id``; one with ``cell`` and ``closed`` says why the cell cannot be run.
    Raises ``RunRefused`` when another process writes there, or when ``config`` differs from the folder's.
    """

    def __init__(self, folder: Path, config: dict[str, Any], overwrite: bool = False):
        self.folder, self.path = folder, folder / "results.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock(folder)
        try:
            if overwrite:
                clear(folder)
            check_config(folder, config)
            mend(self.path)
            self.done: dict[str, set[str]] = defaultdict(set)
            self.closed: dict[str, dict[str, Any]] = {}
            for line in read(self.path):
                self._note(line)
            self._stream = open(self.path, "a", encoding="utf-8")  # lives as long as the journal
        except BaseException:
            os.close(self._lock)
            raise
        self._synced = time.monotonic()

    def _note(self, line: dict[str, Any]) -> None:
        if "closed" in line:
            self.closed[line["cell"]] = line
        elif line["id"] in self.done[line["cell"]]:
            raise RunRefused(f"{self.path}: {line['cell']} answered {line['id']!r} twice; start over with --overwrite")
        else:
            self.done[line["cell"]].add(line["id"])

    def append(self, lines: list[dict[str, Any]]) -> None:
        """Write lines whose question that cell has not answered yet; the others are skipped."""
        fresh = [line for line in lines if "closed" in line or line["id"] not in self.done[line["cell"]]]
        for line in fresh:
            self._note(line)
        self._stream.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in fresh))
        self._stream.flush()
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        os.fsync(self._stream.fileno())
        self._synced = time.monotonic()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.sync()
        self._stream.close()
        os.close(self._lock)


def lock(folder: Path) -> int:
    """An exclusive lock on the folder, let go by the system when the process ends, however it ends."""
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise RunRefused(
            f"{folder} is being written by another process; wait for it, or give another --output"
        ) from None
    return handle


def clear(folder: Path) -> None:
    """Remove the files that a run writes, and nothing else."""
    for pattern in OURS:
        for path in folder.glob(pattern):
            path.unlink()


def check_config(folder: Path, config: dict[str, Any]) -> None:
    """Write ``config`` into an empty folder; in a used one it must be the same."""
    path, config = folder / "config.json", json.loads(json.dumps(config))
    if not path.exists():
        if (folder / "results.jsonl").exists():
            raise RunRefused(f"{folder} has results but no config.json; give another --output, or --overwrite")
        return write_json(path, config)
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunRefused(f"{path} is not JSON ({error}); give another --output, or --overwrite") from None
    keys = [key for key in sorted({*there, *config} - set(FREE)) if there.get(key) != config.get(key)]
    if keys:
        changes = "; ".join(f"{key}: {there.get(key)!r:.160} there, {config.get(key)!r:.160} asked" for key in keys)
        raise RunRefused(f"{folder} holds a run with other settings ({changes}); give another --output, or --overwrite")


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


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a results file, streamed."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as stream:
        for number, text in enumerate(stream, 1):
            try:
                line = json.loads(text)
                if not ("closed" in line or isinstance(line["id"], str)) or not isinstance(line["cell"], str):
                    raise ValueError("no cell and id")
            except (ValueError, TypeError, KeyError) as error:
                raise RunRefused(f"{path}:{number} is damaged ({error}); start over with --overwrite") from None
            yield line
