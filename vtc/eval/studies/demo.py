"""``vtc demo``: a dozen methods on the built-in testbed, in minutes on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from vtc.errors import RunRefused
from vtc.eval import scenes
from vtc.eval.asking.load import load
from vtc.eval.benchmarks import registry
from vtc.eval.running.run import Results, evaluate

METHODS = (  # the baselines, one of each kind with and without share, and FastV's control
    *("random", "grid", "pool", "bipartite", "visionzip", "visionzip+share", "divprune", "divprune+share"),
    *("fastv", "random:layer=0.0625", "pyramiddrop", "adaptive"),
)


def run(output: Path, questions: int, specs: Sequence[str], budgets: Sequence[int | float]) -> Results:
    """Goes on where an interrupted demo stopped; one with other settings is replaced."""
    specs = list(specs) or list(METHODS)
    model, processor = load(str(scenes.checkpoint_path()), "float32", "cpu")
    benchmark = registry["scenes"](limit=questions)
    once = partial(
        evaluate, model, processor, benchmark, specs, budgets, output, batch_size=39, timing_batch=4, repeats=3
    )
    try:
        return once(name="scenes checkpoint")
    except RunRefused:  # other settings or weights; another writer is refused again
        return once(name="scenes checkpoint", overwrite=True)
