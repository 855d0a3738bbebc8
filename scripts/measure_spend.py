"""Spending by need on the testbed, beside the same method with an equal count: python scripts/measure_spend.py.

Levels are calibrated on pictures of the train split, questions are those of the dev split (as ``vtc eval --benchmarks
scenes --split dev`` asks them). The difference is paired: the same questions, one standard error of its mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from statistics import fmean, stdev

import torch

import vtc
from vtc.budget.spend import POWER
from vtc.eval import scenes
from vtc.eval.asking.generate import Answerer
from vtc.eval.asking.load import load
from vtc.eval.benchmarks import Sample, registry
from vtc.eval.cells import parse_budgets, parse_specs
from vtc.methods._spelling import build
from vtc.methods.base import Method


def crowded(split: str, count: int) -> Iterable[Sample]:
    """As the benchmark's own samples, of pictures with at least 12 objects (ordinary ones have 7 or 8)."""
    for s in scenes.samples(split, count, seed=1, crowded=True):
        yield Sample(str(s.id), s.question, (s.answer,), (s.image,), s.type)


def prompts(answerer: Answerer, split: str, count: int, mixed: bool, size: int = 30) -> Iterable[tuple]:
    """Batches of (samples, inputs) of a split."""
    half = count // 2 if mixed else 0
    bench = registry["scenes"](split=split, limit=count - half)
    samples = [*bench.samples(), *(crowded(split, half) if mixed else ())]
    asked = [answerer.ready(sample, bench) for sample in samples]
    for start in range(0, count, size):
        part = asked[start : start + size]
        yield [a.sample for a in part], answerer.inputs(part)


def run(answerer: Answerer, method: Method, budget: int | float, batches: list[tuple]) -> tuple[list, list]:
    """Score of each question, tokens of each picture."""
    bench = registry["scenes"]()
    scores, tokens = [], []
    with vtc.patched(answerer.model, method, budget=budget):
        for samples, inputs in batches:
            scores += [bench.score(a, s) for a, s in zip(answerer.answers(inputs), samples, strict=True)]
            tokens += [p.average for p in vtc.report(answerer.model).pictures]
    return scores, tokens


def counts(tokens: list[float]) -> str:
    return f"{min(tokens):.1f} to {max(tokens):.1f}, mean {fmean(tokens):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", default="divprune,divprune+share,adaptive")
    parser.add_argument("--budgets", default="0.0625,0.03125,0.125")
    parser.add_argument("--limit", type=int, default=900, help="questions a cell")
    parser.add_argument("--calibration", type=int, default=900, help="train prompts to calibrate on")
    parser.add_argument("--mixed", action="store_true", help="half of the pictures are crowded")
    parser.add_argument("--power", type=float, default=POWER, help="of the need, in (0, 1]")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = load(str(scenes.checkpoint_path()), "float32", "cpu", "sdpa")
    answerer = Answerer(model.eval(), processor, registry["scenes"]().frame, max_new_tokens=4)
    examples = [inputs for _, inputs in prompts(answerer, "train", options.calibration, options.mixed)]
    batches = list(prompts(answerer, "dev", options.limit, options.mixed))
    print("| method | budget | equal % | by need % | difference | tokens by need |")
    print("|---|---:|---:|---:|---:|---|")
    for budget in parse_budgets(options.budgets):
        spend = vtc.calibrate_spend(model, examples, budget, power=options.power, progress=False)
        for spec in parse_specs(options.methods):
            method = build(spec)
            plain, equal = run(answerer, method, budget, batches)
            scores, tokens = run(answerer, replace(method, spend=spend), budget, batches)
            gain = [100 * (b - a) for a, b in zip(plain, scores, strict=True)]
            print(
                f"| {spec} | {fmean(equal):.1f} | {100 * fmean(plain):.1f} | {100 * fmean(scores):.1f} "
                f"| {fmean(gain):+.1f} ± {stdev(gain) / len(gain) ** 0.5:.1f} | {counts(tokens)} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
