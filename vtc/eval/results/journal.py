"""The memory of a run: an append-only ``results.jsonl`` with one writer, that survives being killed at any byte."""

from __future__ import annotations

import heapq
import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vtc.errors import RunRefused, VTCError
from vtc.eval.distributed import ALONE, World
from vtc.eval.results.json_lines import encode, mend, read, write_all
from vtc.files.atomic import ROOM, write_atomic, write_json
from vtc.files.lock import lock

SYNC_SECONDS = 5.0
OURS = (
    *("results*.jsonl", "config.json", "summary.json", "measured.json*"),
    *("table.*", "report.html", "pareto*.png", "reliability.png", "overlays/*.png"),
    *("robustness.json", "robustness.md", "compare.json"),
)
FREE = ("model",)  # recorded, but may be spelled differently when a run goes on


class Rows:
    """A set of row numbers from 0 on, a byte each."""

    def __init__(self) -> None:
        self.bits = bytearray()

    def add(self, row: int) -> None:
        if row >= len(self.bits):
            self.bits.extend(bytes(row + 1 - len(self.bits)))
        self.bits[row] = 1

    def __contains__(self, row: int) -> bool:
        return row < len(self.bits) and self.bits[row] == 1

    def __len__(self) -> int:
        return sum(self.bits)

    def __bool__(self) -> bool:
        return bool(self.bits)


class Journal:
    """The results of one run folder, open for appending under a lock (a context manager).

    Lines are dicts with ``cell``, ``batch`` and ``row``; one with ``closed`` and no row says why the cell cannot be
    run from that batch on. They stand in the order of batches, cells and rows. Several ranks write a file each, which
    the first puts together in that order (``results.jsonl`` is the same bytes for any number of ranks), when the run
    ends or goes on after an interruption. Raises ``RunRefused`` when another process writes there, or when ``config``
    differs from the folder's.
    """

    def __init__(self, folder: Path, config: dict[str, Any], overwrite: bool = False, world: World = ALONE):
        self.folder, self.path, self.world = folder, folder / "results.jsonl", world
        self.order = {name: n for n, name in enumerate(config["cells"])}
        self.done: dict[str, Rows] = {name: Rows() for name in self.order}
        self.closed: dict[str, int] = {}  # the first batch that found it closed
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock(folder) if world.first else None
        try:
            if world.first:
                self._prepare(config, overwrite)
            world.wait()  # the folder is ready
            for line in self._read(self.path):
                self._note(line)
            world.wait()  # everyone has read it
            self.own = self._part(world.rank) if self._part(0).exists() else self.path
            self._stream = open(self.own, "ab", buffering=0)  # lives as long as the journal
        except BaseException:
            self._unlock()
            raise
        self._synced = time.monotonic()

    def _part(self, rank: int) -> Path:
        return self.folder / f"results.rank{rank}.jsonl"

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("results.rank*.jsonl"))

    def _prepare(self, config: dict[str, Any], overwrite: bool) -> None:
        """Settings checked, torn lines cut, what ranks left put together. While the first rank's part exists
        ``results.jsonl`` may have gaps, so lines are not appended to it."""
        if overwrite:
            clear(self.folder)
        for stale in [*self.folder.glob(".tmp-*"), *self.folder.glob("overlays/.tmp-*")]:
            stale.unlink()
        check_config(self.folder, config)
        for path in (self.path, *self._parts()):
            mend(path)
        if self.world.size > 1 or self._parts():
            self._part(0).touch()
            self._merge()
            for path in self._parts():
                os.truncate(path, 0) if path == self._part(0) else path.unlink()

    def _merge(self) -> None:
        """All parts into ``results.jsonl``. Lines that two files hold come once, and a closed cell has none after its
        end: done twice, it changes nothing."""
        files = [self.path, *self._parts()]
        closed: dict[str, int] = {}
        for line in (line for path in files for line in self._read(path) if "closed" in line):
            closed[line["cell"]] = min(line["batch"], closed.get(line["cell"], line["batch"]))

        def write(path: Path) -> None:
            last = None
            with open(path, "wb") as stream:
                for line in heapq.merge(*map(self._read, files), key=self._key):
                    key, end = self._key(line), closed.get(line["cell"], math.inf)
                    if key != last and (line["batch"] < end or "closed" in line and line["batch"] == end):
                        stream.write(encode(line))
                    last = key

        write_atomic(self.path, write)

    def _key(self, line: dict[str, Any]) -> tuple[int, int, int]:
        return line["batch"], self.order[line["cell"]], line.get("row", -1)

    def _read(self, path: Path) -> Iterator[dict[str, Any]]:
        for line in read(path):
            if line["cell"] not in self.order:
                raise RunRefused(f"{path}: {line['cell']!r} is no cell of this run; start over with --overwrite")
            yield line

    def _note(self, line: dict[str, Any]) -> None:
        if "closed" in line:
            self.closed[line["cell"]] = min(line["batch"], self.closed.get(line["cell"], line["batch"]))
        elif line["row"] in self.done[line["cell"]]:
            raise RunRefused(f"{self.path}: {line['cell']} answered {line['id']!r} twice; start over with --overwrite")
        else:
            self.done[line["cell"]].add(line["row"])

    @property
    def empty(self) -> bool:
        return not self.closed and not any(self.done.values())

    def missing(self, cell: str, batch: int, rows: list[int]) -> bool:
        """Whether the cell has to answer any of the batch's rows."""
        done = self.done[cell]
        return batch < self.closed.get(cell, math.inf) and any(row not in done for row in rows)

    def append(self, lines: list[dict[str, Any]]) -> None:
        """Write lines whose row that cell has not answered yet; the others are skipped."""
        fresh = [line for line in lines if "closed" in line or line["row"] not in self.done[line["cell"]]]
        try:
            write_all(self._stream, b"".join(map(encode, fresh)))
        except OSError as error:
            mend(self.own)
            raise VTCError(f"{self.own} cannot be written ({error.strerror}); {ROOM}") from None
        for line in fresh:
            self._note(line)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        os.fsync(self._stream.fileno())
        self._synced = time.monotonic()

    def finish(self) -> None:
        """Waits for all ranks; the first then puts their parts together."""
        self.sync()
        self.world.wait()
        if not self.world.first or not self._parts():
            return
        self._merge()
        for path in reversed(self._parts()):  # the first rank's goes last: while it is there, gaps are possible
            path.unlink()
        for line in self._read(self.path):
            if "closed" in line:
                self._note(line)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.sync()
        self._stream.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()


def clear(folder: Path) -> None:
    """Remove the files that a run writes, those of its runs under corruptions included, and nothing else."""
    for pattern in OURS:
        for path in folder.glob(pattern):
            path.unlink()
    for spoiled in folder.glob("robustness/*/"):
        start_over(spoiled)


def start_over(folder: Path) -> None:
    """``clear`` under the folder's lock."""
    held = lock(folder)
    try:
        clear(folder)
    finally:
        held.release()


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
