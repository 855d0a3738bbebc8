"""A width for each layer against one width for all, at equal bytes; and the solver on a table the size of a 70B model.

    OMP_NUM_THREADS=1 python scripts/bench_plan.py     # the testbed, about a quarter of an hour

Three sets of dev prompts: one to fit the weights to, one to foresee divergences on, one held out. Of the held-out ones
those that the plain model is in doubt on are all asked, of the others every twentieth, which counts for twenty: the
mean stays that over all. Controls: plans by output error alone, and by divergences that
were dealt to other layers of the same size.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

import vtc
from vtc.eval.asking.generate import Answerer
from vtc.eval.benchmarks import registry
from vtc.weights.formats import hf
from vtc.weights.planning.allocate import lagrangian_bound, solve
from vtc.weights.planning.plan import Probe, Trial, allocate, trials

DOUBT, EVERY = 0.01, 20  # 1 - sum p^2 from which a prompt is asked; one in so many of the others is


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vtc/eval/scenes/checkpoint")
    parser.add_argument("--bits", type=int, nargs="*", default=[3, 4])
    parser.add_argument("--examples", type=int, default=64, help="dev prompts to fit the weights to")
    parser.add_argument("--foresee", type=int, default=1280, help="others to foresee divergences on")
    parser.add_argument("--heldout", type=int, default=2560, help="others to measure divergences on")
    parser.add_argument("--skip", type=int, default=0, help="dev prompts to leave out at first: another calibration")
    parser.add_argument("--questions", type=int, default=450, help="test questions for the accuracy")
    parser.add_argument("--controls", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    print(solver(), flush=True)
    bench = Bench(args)
    for bits in args.bits:
        bench.compare(bits)
    if args.controls:
        for bits in args.bits:
            bench.control(bits)


class Bench:
    """The model and its three sets of prompts."""

    def __init__(self, args: argparse.Namespace):
        from transformers import AutoProcessor

        self.args, self.processor = args, AutoProcessor.from_pretrained(args.model, trust_remote_code=False)
        self.plain, self.uniform = self.load(), dict[int, float]()
        source = registry["scenes"](split="dev", limit=args.skip + args.examples + args.foresee + args.heldout)
        answerer = Answerer(self.plain, self.processor, source.frame, "{question}", source.max_new_tokens)
        asked = [answerer.ready(sample, source) for sample in source.samples()][args.skip :]
        one = [answerer.inputs([each]) for each in asked[args.examples :]]
        self.calibration = [answerer.inputs(asked[n : min(n + 16, args.examples)]) for n in range(0, args.examples, 16)]
        started = time.perf_counter()
        self.tried = trials(self.plain, self.calibration, one[: args.foresee], progress=False)
        print(f"{len(self.tried)} candidates in {time.perf_counter() - started:.0f} s", flush=True)
        kept = sample_of(self.plain, one[args.foresee :])
        self.weights = torch.tensor([weight for weight, _ in kept])
        self.probe = Probe(self.plain, [prompt for _, prompt in kept])
        print(f"{len(kept)} of {args.heldout} held-out prompts asked; plain model: {self.accuracy(self.plain)}")
        print("\n| bits | | divergence (nats) | standard error | times less | accuracy | bytes |")
        print("|---:|---|---:|---:|---:|---:|---:|", flush=True)

    def load(self) -> Any:
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText.from_pretrained(
            self.args.model, dtype=torch.float32, trust_remote_code=False
        ).eval()

    def compare(self, bits: int) -> None:
        """Rows of one size: uniform GPTQ, and the plan of no more bytes."""
        self.uniform[bits] = self.row(bits, uniform := f"gptq:bits={bits}", uniform)
        self.row(bits, "plan", allocate(self.tried, limit=self.limit(bits)).recipe())

    def control(self, bits: int) -> None:
        """Rows of plans that know less."""
        limit = self.limit(bits)
        self.row(bits, "plan by output error", allocate(self.tried, limit=limit, by="error").recipe(), asked=False)
        self.row(bits, "plan by others' damage", allocate(dealt(self.tried), limit=limit).recipe(), asked=False)

    def limit(self, bits: int) -> float:
        return sum(t.bytes for t in self.tried if t.passes == f"gptq:bits={bits}")

    def row(self, bits: int, name: str, recipe: Any, asked: bool = True) -> float:
        model = self.load()
        vtc.compress(model, recipe, self.calibration, progress=False)
        size = sum(told["bytes"] for told in hf.config_of(model).manifest["layers"].values())
        lost = self.probe.each(model) * self.weights
        mean, error = float(lost.sum()) / self.args.heldout, float(lost.square().sum().sqrt()) / self.args.heldout
        better = f"{self.uniform.get(bits, mean) / mean:.2f}"
        accuracy = self.accuracy(model) if asked else "-"
        print(f"| {bits} | {name} | {mean:.5f} | {error:.5f} | {better} | {accuracy} | {size:,} |", flush=True)
        return mean

    def accuracy(self, model: Any) -> str:
        test = registry["scenes"](split="test", limit=self.args.questions)
        answerer = Answerer(model, self.processor, test.frame, "{question}", test.max_new_tokens)
        asked, scores = [answerer.ready(sample, test) for sample in test.samples()], []
        for n in range(0, len(asked), 50):
            part = asked[n : n + 50]
            answers = answerer.answers(answerer.inputs(part))
            scores += [test.score(text, each.sample) for text, each in zip(answers, part, strict=True)]
        return f"{100 * statistics.mean(scores):.1f}"


@torch.no_grad()
def sample_of(model: Any, prompts: list[Any]) -> list[tuple[int, Any]]:
    """(how many it counts for, prompt): all that ``model`` is in doubt on, every twentieth of the others."""
    kept, sure = [], 0
    for prompt in prompts:
        p = model(**prompt, logits_to_keep=1).logits[0, -1].float().softmax(-1)
        if 1 - float(p.square().sum()) > DOUBT:
            kept.append((1, prompt))
        else:
            sure += 1
            if sure % EVERY == EVERY // 2:
                kept.append((EVERY, prompt))
    return kept


def dealt(tried: list[Trial], seed: int = 0) -> list[Trial]:
    """The trials with divergences of other layers of as many weights."""
    draw, other = random.Random(seed), {}
    for size in {t.weights for t in tried}:
        names = list(dict.fromkeys(t.layer for t in tried if t.weights == size))
        other |= dict(zip(names, draw.sample(names, len(names)), strict=True))
    value = {(t.layer, t.passes): t.divergence for t in tried}
    return [replace(t, divergence=value[other[t.layer], t.passes]) for t in tried]


def solver(layers: int = 560, candidates: int = 12, tables: int = 5) -> str:
    """Seconds of ``solve`` and its distance from the Lagrangian bound, that no answer can be below."""
    seconds, gaps = [], []
    solve(np.ones((1, 1)), np.ones((1, 1)), 1.0)  # imports
    for seed in range(tables):
        rng = np.random.default_rng(seed)
        bits = np.sort(rng.uniform(2, 9, (layers, candidates)), axis=1)
        cost = bits * rng.choice([4096, 11008], (layers, 1)) * 512.0
        damage = rng.lognormal(0, 2, (layers, 1)) * 4.0**-bits * rng.lognormal(0, 0.2, bits.shape)
        limit = float(cost.sum() / bits.sum() * 4 * layers)
        started = time.perf_counter()
        found = solve(damage, cost, limit)
        seconds.append(time.perf_counter() - started)
        gaps.append(damage[range(layers), found].sum() / lagrangian_bound(damage, cost, limit) - 1)
    return (
        f"solver, {layers} layers x {candidates} candidates, {tables} tables: {statistics.median(seconds):.2f} s (at "
        f"most {max(seconds):.2f}), above the Lagrangian bound by {100 * statistics.median(gaps):.4f} % (at most "
        f"{100 * max(gaps):.4f} %)"
    )


if __name__ == "__main__":
    main()
