"""The memory of a run: an append-only ``results.jsonl`` with one writer, that survives being killed at any byte."""

from __future__ import annotations

import heapq
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vtc.errors import RunRefused
from vtc.eval.distributed import ALONE, World
from vtc.eval.results.json_lines import encode, mend, read, write_all
from vtc.eval.results.rows import Ids, Rows
from vtc.eval.results.settings import same_settings
from vtc.files.atomic import unwritable, write_atomic
from vtc.files.lock import lock

SYNC_SECONDS = 5.0
OURS = (
    *("results*.jsonl", "config.json", "summary.json", "measured.json*"),
    *("table.*", "report.html", "pareto*.png", "reliability.png", "overlays/*.png"),
    *("robustness.json", "robustness.md", "compare.json"),
)


class Journal:
    """The results of one run folder, open for appending under a lock (a context manager).

    Lines are dicts with ``cell``, ``batch`` and ``row``; one with ``closed`` and no row says why the cell cannot be
    run from that batch on. They stand in the order of batches, cells and rows. Several ranks write a file each, which
    the first puts together in that order (``results.jsonl`` is the same bytes for any number of ranks), when the run
    ends or goes on after an interruption. Raises ``RunRefused`` when another process writes there, when ``config``
    differs from the folder's, or for lines that were changed; ``VTCError`` where the folder cannot be written.
    """

    def __init__(self, folder: Path, config: dict[str, Any], overwrite: bool = False, world: World = ALONE):
        self.folder, self.path, self.world = folder, folder / "results.jsonl", world
        self.order = {name: n for n, name in enumerate(config["cells"])}
        self.done: dict[str, Rows] = {name: Rows() for name in self.order}
        self.ids = Ids()
        self.closed: dict[str, int] = {}  # the first batch that found it closed
        self._lock = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock(folder) if world.first else None
            if world.first:
                self._prepare(config, overwrite)
            world.wait()  # the folder is ready
            for line in self._read(self.path):
                self._note(line)
            world.wait()  # everyone has read it
            self.own = self._part(world.rank) if self._part(0).exists() else self.path
            self._stream = open(self.own, "ab", buffering=0)  # lives as long as the journal
            self._there = self._seen(self.own)
        except OSError as error:
            self._unlock()
            raise unwritable(folder, error) from None
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
        same_settings(self.folder, config)
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
            if "error" not in line:  # what a broken row is called may change
                self.check_id(line["row"], line["id"])

    def check_id(self, row: int, identity: str) -> None:
        """Raises ``RunRefused`` unless all that is known of the row is of the question ``identity``."""
        if not self.ids.agree(row, identity):
            raise RunRefused(
                f"{self.path}: row {row} is question {identity!r} here and another there; start over with --overwrite"
            )

    def check_count(self, count: int) -> None:
        """Raises ``RunRefused`` where rows from ``count`` on, which the benchmark does not have, were answered."""
        if (beyond := max(rows.end for rows in self.done.values())) > count:
            raise RunRefused(
                f"{self.path}: row {beyond - 1} is beyond the {count:,} rows there are; start over with --overwrite"
            )

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
        self.check_there()
        try:
            write_all(self._stream, b"".join(map(encode, fresh)))
        except OSError as error:
            mend(self.own)
            raise unwritable(self.own, error) from None
        self._there = self._seen(self.own)
        for line in fresh:
            self._note(line)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def check_there(self) -> None:
        """Raises ``RunRefused`` when the file that is written is no longer the one in the folder."""
        if self._seen(self.own) != self._there:
            raise RunRefused(
                f"{self.own} was moved, deleted or changed while this run was writing it; put it back as it was and "
                "give the same command, which goes on there, or start over with --overwrite"
            )

    def _seen(self, path: Path) -> tuple[int, int, int] | None:
        """Device, number and size of the file; None where there is none."""
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino, found.st_size

    def sync(self) -> None:
        try:
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise unwritable(self.own, error) from None
        self._synced = time.monotonic()

    def finish(self) -> None:
        """Waits for all ranks; the first then puts their parts together."""
        self.check_there()
        self.sync()
        self.world.wait()
        if not self.world.first or not self._parts():
            return
        self._merge()
        for path in reversed(self._parts()):  # the first rank's goes last: while it is there, gaps are possible
            path.unlink()
        self.own, self._there = self.path, self._seen(self.path)
        for line in self._read(self.path):
            if "closed" in line:
                self._note(line)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.sync()
        finally:
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
