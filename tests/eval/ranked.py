"""Run by ``test_distributed``: one rank and several, each a process forked from this one, joined by gloo.

Prints a JSON object: for each run its exit codes, and the (world size, answers asked for) that each rank saw.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

import torch

torch.set_num_threads(1)

from tests.eval.tiny import tiny_llava, tiny_processor  # noqa: E402
from vtc.errors import VTCError  # noqa: E402
from vtc.eval import distributed as ranks  # noqa: E402
from vtc.eval.asking.generate import Answerer  # noqa: E402
from vtc.eval.benchmarks.jsonl import JSONL  # noqa: E402
from vtc.eval.report import plots  # noqa: E402
from vtc.eval.results.journal import Journal  # noqa: E402
from vtc.eval.running.run import evaluate  # noqa: E402

plots.available = lambda: False


def work(folder: Path, data: Path, seen: Path, die_at: int | None, fail: bool) -> None:
    """One rank: killed at its ``die_at``-th write, or failing at its first batch."""
    world, asked = ranks.join(), []
    replies, append = Answerer.replies, Journal.append

    def counted(self, inputs):
        asked.append(1)
        if fail:
            raise VTCError("this rank is broken")
        return replies(self, inputs)

    def deadly(self, lines):
        append(self, lines)
        if len(asked) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    Answerer.replies, Journal.append = counted, deadly
    evaluate(
        tiny_llava(), tiny_processor(), JSONL(data=data), ["random", "fastv"], [0.5, 0.25], folder, world=world,
        batch_size=2, repeats=0, overlays=1, progress=False, max_new_tokens=4, name="tiny",
    )  # fmt: skip
    seen.write_text(json.dumps([world.size, len(asked)]))


def run(folder: Path, data: Path, size: int, die_at: int | None = None, failing: int | None = None) -> dict:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    seen = [folder.with_name(f"{folder.name}.{rank}.json") for rank in range(size)]
    pids = []
    for rank in range(size):
        seen[rank].unlink(missing_ok=True)
        if (pid := os.fork()) == 0:
            status = 1
            try:
                if size > 1:
                    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
                work(folder, data, seen[rank], die_at, rank == failing)
                status = 0
            except VTCError as error:
                print(f"rank {rank}: {error}", file=sys.stderr)
            finally:
                os._exit(status)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return {"codes": codes, "seen": [json.loads(path.read_text()) for path in seen if path.exists()]}


def main(data: Path, which: str) -> None:
    base = data.parent
    out = {"one": run(base / "one", data, 1)}
    if which == "fresh":
        out |= {"two": run(base / "two", data, 2), "failing": run(base / "failing", data, 2, failing=1)}
    else:
        out |= {"killed": run(base / "moved", data, 2, die_at=4), "moved": run(base / "moved", data, 3)}
        out |= {"killed again": run(base / "alone", data, 3, die_at=4), "alone": run(base / "alone", data, 1)}
    print(json.dumps(out))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
