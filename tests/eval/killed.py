"""Run by ``test_interruption``: runs that are killed at chosen points, each in a process of its own, then resumed.

Forks before any thread exists, so one start of Python serves all points. Prints a JSON object: what was left each time.
"""

from __future__ import annotations

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
from vtc.eval import plots  # noqa: E402
from vtc.eval.benchmarks.jsonl import JSONL  # noqa: E402
from vtc.eval.journal import Journal, encode  # noqa: E402
from vtc.eval.run import evaluate  # noqa: E402


def run(folder: Path, data: Path) -> None:
    evaluate(
        tiny_llava(), tiny_processor(), JSONL(data=data), ["random", "fastv"], [0.5, 0.25], folder,
        batch_size=4, repeats=0, overlays=0, progress=False, max_new_tokens=4, name="tiny",
    )  # fmt: skip


def die_at(point: tuple[int, str]) -> None:
    """Die at the n-th write: before it, in the middle of a line, or after it."""
    number, moment = point
    append, calls = Journal.append, 0

    def deadly(self: Journal, lines: list) -> None:
        nonlocal calls
        calls += 1
        if calls == number and moment == "torn":
            text = b"".join(map(encode, lines))
            self._stream.write(text[: len(text) * 2 // 3])
        if calls == number and moment != "after":
            os.kill(os.getpid(), signal.SIGKILL)
        append(self, lines)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.append = deadly  # type: ignore[method-assign]


def child(folder: Path, data: Path, point: tuple[int, str] | None = None, seconds: float | None = None) -> int:
    """Exit code of a forked run, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if point:
                die_at(point)
            run(folder, data)
            status = 0
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


plots.available = lambda: False


def main(data: Path, points: int, moments: int) -> None:
    out, base = {}, data.parent
    assert child(base / "whole", data) == 0
    writes = 3 * 5 - 2  # batches x cells, less the two that a closed cell skips
    for n in range(points):
        folder = base / f"point{n}"
        point = (1 + n * (writes - 1) // max(points - 1, 1), ("before", "torn", "after")[n % 3])
        codes = [child(folder, data, point), child(folder, data)]
        out[folder.name] = codes
    for n in range(moments):
        folder = base / f"moment{n}"
        codes = [child(folder, data, seconds=random.Random(n).uniform(0.2, 2.5)) for _ in range(2)]
        out[folder.name] = [*codes, child(folder, data)]
    print(json.dumps(out))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
