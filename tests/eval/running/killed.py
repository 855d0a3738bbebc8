"""Run by ``test_interruption``: runs that are killed at chosen points, each in a process of its own, then resumed.

Forks before any thread exists, so one start of Python serves all points. Prints a JSON object: what was left each time.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

torch.set_num_threads(1)

from tests.eval.tiny import tiny_llava, tiny_processor  # noqa: E402
from vtc.eval.benchmarks.jsonl import JSONL  # noqa: E402
from vtc.eval.report import plots  # noqa: E402
from vtc.eval.results.journal import Journal  # noqa: E402
from vtc.eval.results.json_lines import encode  # noqa: E402
from vtc.eval.running.run import evaluate  # noqa: E402


def run(folder: Path, data: Path) -> None:
    evaluate(
        tiny_llava(), tiny_processor(), JSONL(data=data), ["random", "fastv"], [0.5, 0.25], folder,
        batch_size=4, repeats=0, overlays=1, progress=False, max_new_tokens=4, name="tiny",
    )  # fmt: skip


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_append(number: int, moment: str) -> None:
    """Die at the n-th write of answers: before it, in the middle of a line, or after it."""
    append, calls = Journal.append, 0

    def deadly(self: Journal, lines: list) -> None:
        nonlocal calls
        calls += 1
        if calls == number and moment == "torn":
            text = b"".join(map(encode, lines))
            self._stream.write(text[: len(text) * 2 // 3])
        if calls == number and moment != "after":
            die()
        append(self, lines)
        if calls == number:
            die()

    Journal.append = deadly  # type: ignore[method-assign]


def die_at_file(number: int, moment: str) -> None:
    """Die at the n-th file that is put in its place (settings, costs, summary, table, plot, overlay)."""
    replace, calls = os.replace, 0

    def deadly(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == number and moment == "torn":
            os.truncate(source, os.path.getsize(source) // 2)
        if calls == number and moment != "after":
            die()
        replace(source, target)
        if calls == number:
            die()

    os.replace = deadly  # type: ignore[assignment]


def child(folder: Path, data: Path, point: tuple[str, int, str] | None = None, seconds: float | None = None) -> int:
    """Exit code of a forked run, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if point:
                {"append": die_at_append, "file": die_at_file}[point[0]](*point[1:])
            run(folder, data)
            status = 0
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


MOMENTS = ("before", "torn", "after")
QUICK = [("append", 6, "torn"), ("file", 3, "torn"), ("file", 4, "after")]
ALL = [("append", n, MOMENTS[n % 3]) for n in range(1, 14)]  # 3 batches x 5 cells, less 2 of a closed cell
ALL += [("file", n, MOMENTS[n % 3]) for n in range(1, 7)] + [("file", 3, "torn")]


def main(data: Path, which: str) -> None:
    out, base = {}, data.parent
    if which == "quick":
        plots.available = lambda: False
    else:
        importlib.import_module("matplotlib.backends.backend_agg")
    assert child(base / "whole", data) == 0
    for n, point in enumerate(QUICK if which == "quick" else ALL):
        folder = base / f"point{n}"
        out[folder.name] = [child(folder, data, point), child(folder, data)]
    for n in range(0 if which == "quick" else 5):
        folder = base / f"moment{n}"
        codes = [child(folder, data, seconds=random.Random(n).uniform(0.2, 2.5)) for _ in range(2)]
        out[folder.name] = [*codes, child(folder, data)]
    print(json.dumps(out))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
