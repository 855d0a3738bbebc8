"""Peak memory of `vtc eval` above its model on a file of millions of questions, with answers made up on the spot.

    python scripts/measure_memory.py --questions 5000000

Everything runs as in `vtc eval` (reading, batches, journal, summary) but pictures, prompts and the model itself.
Writes about 500 bytes a question under --folder and removes them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

from PIL import Image

from vtc.eval import scenes
from vtc.eval.asking.generate import Answerer, Asked
from vtc.eval.asking.load import load
from vtc.eval.benchmarks.jsonl import JSONL
from vtc.eval.costs import measure
from vtc.eval.running import run, runner

WORDS = ("red", "green", "blue", "yes", "no")


class MadeUp(Answerer):
    """Answers each question by a word, right two times of three."""

    def ready(self, sample, benchmark):
        return Asked(sample, [], sample.question)

    def inputs(self, asked):
        return asked

    def replies(self, asked):
        right = [hash((a.sample.id, time.time_ns())) % 3 > 0 for a in asked]
        return [(a.sample.answers[0], 0.9) if r else ("none", 0.4) for a, r in zip(asked, right, strict=True)]


def resident(key: str) -> float:
    """MB that this process holds (``VmRSS``), or the most since ``forget_peak`` (``VmHWM``). Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(key))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def write_questions(folder: Path, count: int) -> Path:
    Image.new("RGB", (32, 32)).save(folder / "0.png")
    with open(folder / "q.jsonl", "w") as stream:
        for n in range(count):
            row = {"id": f"question-{n}", "image": "0.png", "question": "what color " * (n % 7 + 1) + "?"}
            stream.write(json.dumps(row | {"answer": WORDS[n % 5], "type": ("color", "place")[n % 2]}) + "\n")
    return folder / "q.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=5_000_000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--folder", type=Path, help="where there is room; default: the system's")
    options = parser.parse_args()
    model, processor = load(str(scenes.checkpoint_path()), "float32", "cpu")
    run.Answerer = MadeUp
    run.measurements = lambda *_: {}
    runner.Runner.tokens = lambda self, cell, asked, inputs: [98.0 if cell.patched else 196.0] * len(asked)
    measure.entered = lambda model, cell: nullcontext(model)
    folder = Path(tempfile.mkdtemp(dir=options.folder, prefix="vtc-memory-"))
    try:
        benchmark = JSONL(data=write_questions(folder, options.questions))
        settings = {"batch_size": options.batch_size, "overlays": 0, "progress": False}
        few = JSONL(data=benchmark.data, limit=2048)
        run.evaluate(model, processor, few, ["random"], [0.5], folder / "warm", **settings)
        for name in ("asked", "asked again: nothing to do"):
            forget_peak()
            before, start = resident("VmRSS"), time.perf_counter()
            results = run.evaluate(model, processor, benchmark, ["random"], [0.5], folder / "out", **settings)
            cell = results.summary["cells"]["random@0.5"]
            print(
                f"{name}: {cell['questions']:,} questions x 2 cells, {resident('VmHWM') - before:.0f} MB above the "
                f"{before:.0f} MB before, {time.perf_counter() - start:.0f} s, change {cell['change']}",
                flush=True,
            )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
