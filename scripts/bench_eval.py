"""How much longer `vtc eval` takes than the bare `generate` calls it makes, on the testbed.

    OMP_NUM_THREADS=1 python scripts/bench_eval.py --questions 1569 --turns 5

One method at one budget, so two cells: the unpatched model and the method. Bare: `generate` on the same batches, made
beforehand, the model patched once. Whole: `vtc.eval.run.evaluate` into an empty folder, drawing the pictures,
processing, scores, journal and tables inside, without timed prefills and overlays. Both take turns; the start of Python
and loading the model are in neither. On a CPU that others use too, read the ratio of processor seconds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import vtc
from vtc.eval import scenes
from vtc.eval.asking.batches import batches
from vtc.eval.asking.generate import Answerer
from vtc.eval.asking.load import load
from vtc.eval.benchmarks import registry
from vtc.eval.report import plots
from vtc.eval.running.run import evaluate
from vtc.methods._spelling import build
from vtc.tokens import Budget


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """By the clock, and of the processor."""
    start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=1569)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--method", default="divprune")
    parser.add_argument("--budget", default="0.25")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    method, budget = options.method, Budget.of(options.budget).value
    model, processor = load(str(scenes.checkpoint_path()), device=options.device)
    benchmark = registry["scenes"](limit=options.questions)
    answerer = Answerer(model, processor, benchmark.frame, max_new_tokens=benchmark.max_new_tokens)
    inputs = [
        answerer.inputs([answerer.ready(sample, benchmark) for sample in batch.samples])
        for batch in batches(benchmark, options.batch_size)
    ]
    plots.available()  # imports what a first run would

    def bare() -> None:
        for each in inputs:
            answerer.answers(each)
        with vtc.patched(model, build(method), budget=budget):
            for each in inputs:
                answerer.answers(each)

    def whole() -> None:
        with tempfile.TemporaryDirectory() as folder:
            evaluate(
                model, processor, benchmark, [method], [budget], Path(folder), batch_size=options.batch_size,
                repeats=0, overlays=0, progress=False,
            )  # fmt: skip

    ratios: dict[str, list[float]] = {"clock": [], "processor": []}
    for turn in range(options.turns + 1):  # the first warms up
        pairs = dict(zip(ratios, zip(seconds(bare), seconds(whole), strict=True), strict=True))
        if turn:
            for name, (before, after) in pairs.items():
                ratios[name].append(after / before)
            print(f"turn {turn}: " + ", ".join(f"{k} {a:.2f} s bare, {b:.2f} s whole" for k, (a, b) in pairs.items()))
    print(
        f"{options.questions} questions, {method} at {options.budget}, batches of {options.batch_size}, {model.device}"
    )
    for name, found in ratios.items():
        print(f"{name}: {median(found):.3f} ({min(found):.3f} to {max(found):.3f} in {options.turns} turns)")


if __name__ == "__main__":
    main()
