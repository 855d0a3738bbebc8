"""Cells measured in turn. Each figure is on disk at once: a run that was interrupted measures what is missing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vtc.errors import RunRefused
from vtc.eval.results.json_lines import encode, mend, numbered, write_all
from vtc.files.atomic import unwritable

Figures = dict[str, Any]


class Turns:
    """What was measured: in ``path`` (None: only in memory) a line of ``settings``, then a line a figure.

    A file of other settings, those of the machine among them, is begun anew: nothing of it is used. ``quiet``: no
    progress bars (None: none unless a person watches). Raises ``RunRefused`` for a damaged file.
    """

    def __init__(self, path: Path | None = None, settings: Figures | None = None, quiet: bool | None = True):
        self.path, self.quiet = path, quiet
        self.seen: dict[tuple[str, str], list[Figures]] = defaultdict(list)
        if path is None:
            return
        mend(path)
        there, *lines = read(path) or [{}]
        if there == {"settings": settings}:
            for line in lines:
                self.seen[line["part"], line["cell"]].append(line["figures"])
            return
        path.unlink(missing_ok=True)
        write(path, {"settings": settings})

    def take(
        self, part: str, cells: Iterable[str], count: int, measure: Callable[[int, str], Figures], warm_up: int = 0
    ) -> dict[str, list[Figures]]:
        """``count`` figures of every cell by name, from ``measure(its number, its name)``, the cells in turn. The
        first ``warm_up`` turns are not counted."""
        names = list(cells)
        seen = {cell: self.seen[part, cell] for cell in names}
        behind = {cell for cell in names if len(seen[cell]) < count}
        total = (warm_up + count) * len(names)
        with tqdm(total=total, desc=f"measuring {part}", disable=self.quiet, leave=False) as bar:
            for turn in range(-warm_up, count):
                for number, cell in enumerate(names):
                    if turn < 0 and cell in behind:
                        measure(number, cell)
                    elif turn >= len(seen[cell]):
                        seen[cell].append(measure(number, cell))
                        self._keep(part, cell)
                    bar.update()
        return seen

    def _keep(self, part: str, cell: str) -> None:
        if self.path is not None:
            write(self.path, {"part": part, "cell": cell, "figures": self.seen[part, cell][-1]})


def read(path: Path) -> list[Figures]:
    """The lines of the file."""
    found = [line for _, line in numbered(path)]
    for line in found[1:]:
        if set(line) != {"part", "cell", "figures"}:
            raise RunRefused(f"{path} is damaged (a line has {', '.join(line)!a:.80}); start over with --overwrite")
    return found


def write(path: Path, line: Figures) -> None:
    """Append the line."""
    try:
        with open(path, "ab", buffering=0) as stream:
            write_all(stream, encode(line))
    except OSError as error:
        raise unwritable(path, error) from None
