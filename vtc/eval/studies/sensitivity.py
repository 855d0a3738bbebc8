"""``vtc sensitivity``: what it costs to drop vision tokens before each decoder layer, and where attention goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vtc.engine.attention.masks import row_bias
from vtc.engine.capture.attention_hook import hook_attention
from vtc.errors import BudgetError, DataError, VTCError
from vtc.eval.asking.generate import Answerer, Asked
from vtc.eval.benchmarks import Benchmark
from vtc.eval.results.settings import same_settings
from vtc.eval.running.describe import describe
from vtc.eval.studies.sensitivity_report import write_report
from vtc.files.atomic import write_json
from vtc.files.lock import lock
from vtc.files.strict import read_json
from vtc.kernels.received_attention import received_attention
from vtc.methods.base import Method
from vtc.methods.fastv import FastV
from vtc.methods.random import Random
from vtc.models import family_of
from vtc.patching.api import patch_of, patched, report
from vtc.patching.calibration import next_token

MOST = 12
"""Layers probed unless told otherwise."""


@dataclass(frozen=True)
class Cut:
    """From decoder layer ``layer`` on, the share ``keep`` of a picture's tokens: drawn at ``random``, or those the
    question attends to (``fastv``)."""

    rule: str
    layer: int
    keep: float

    @property
    def name(self) -> str:
        return f"{self.rule}:layer={self.layer}@{self.keep:g}"

    def method(self) -> Method:
        return {"random": Random, "fastv": FastV}[self.rule](layer=self.layer)

    def budget(self, depth: int) -> float:
        """Its layer-averaged share in a decoder of ``depth`` layers."""
        return (self.layer + (depth - self.layer) * self.keep) / depth


def sensitivity(
    model: Any,
    processor: Any,
    benchmark: Benchmark,
    output: str | Path,
    *,
    keeps: Sequence[float] = (0.5, 0.25, 0.125),
    layers: Sequence[int] | None = None,
    tolerance: float = 0.05,
    batch_size: int = 8,
    template: str = "{question}",
    name: str = "",
    progress: bool = True,
) -> dict[str, Any]:
    """Accuracy, and the divergence of the next token from the unpatched model's, with tokens dropped before each layer.

    keeps: shares of a picture's tokens left after the cut; layers: where to cut (default: at most 12, evenly, the first
    included); tolerance: nats of divergence that the suggested schedule may cost at each of its cuts. Writes
    ``sensitivity.json``, ``.md`` and ``.png`` into ``output`` and returns what the first holds; called again with the
    same settings it goes on where it stopped. Raises ``VTCError`` for layers or shares that the model cannot have,
    ``DataError`` where the benchmark gives no usable question.
    """
    if patch_of(model) is not None:
        raise VTCError("the model is patched, and cuts are compared with the unpatched one; vtc.unpatch(model) first")
    family = family_of(model)
    depth = len(family.layers)
    cuts = plan(depth, [0] if family.hybrid and layers is None else layers, keeps)
    answerer = Answerer(model.eval(), processor, benchmark.frame, template, benchmark.max_new_tokens)
    config = describe(answerer, benchmark, [], name, batch_size) | {"cells": [cut.name for cut in cuts]}
    with held(Path(output), config) as folder:
        probe, path = Probe(answerer, benchmark, batch_size), folder / "sensitivity.json"
        found: dict[str, Any] = {"settings": config, "depth": depth}
        found |= read_json(path) if path.exists() else {}
        if "unpatched" not in found:
            found |= {"unpatched": probe.unpatched(), "attention": probe.attention(), "cuts": {}}
            write_json(path, found)
        for cut in tqdm(cuts, unit="cut", disable=None if progress else True):
            if cut.name not in found["cuts"]:
                found["cuts"][cut.name] = vars(cut) | probe.cost(cut, depth)
                write_json(path, found)
        found |= {"tolerance": tolerance, "schedule": schedule(list(found["cuts"].values()), tolerance)}
        write_json(path, found)
        write_report(found, folder)
    return found


@contextmanager
def held(folder: Path, config: dict[str, Any]) -> Iterator[Path]:
    """The folder, locked, and known to hold no run with other settings."""
    handle = lock(folder)
    try:
        same_settings(folder, config)
        yield folder
    finally:
        handle.release()


def plan(depth: int, layers: Sequence[int] | None, keeps: Sequence[float]) -> list[Cut]:
    """Every cut to measure, by layer. Question-aware ones need a layer before them to have run."""
    if layers is None:
        layers = sorted({round(n * (depth - 1) / (min(MOST, depth) - 1 or 1)) for n in range(min(MOST, depth))})
    for layer in layers:
        if not 0 <= layer < depth:
            raise VTCError(f"layer {layer} is not in this decoder; give layers from 0 to {depth - 1}")
    for keep in keeps:
        if not 0 < keep < 1:
            raise VTCError(f"share {keep!r} leaves nothing to measure; give shares of the tokens between 0 and 1")
    rules = {layer: ("random", "fastv") if layer else ("random",) for layer in layers}
    return [Cut(rule, layer, keep) for layer in layers for keep in keeps for rule in rules[layer]]


class Probe:
    """Asks the same questions again and again; made while the model is unpatched, it remembers what that model says
    next."""

    @torch.no_grad()
    def __init__(self, answerer: Answerer, benchmark: Benchmark, size: int) -> None:
        self.answerer, self.benchmark = answerer, benchmark
        asked = [answerer.ready(sample, benchmark) for sample in benchmark.samples()]
        self.asked = [one for one in asked if one.pictures]
        if not self.asked:
            raise DataError("no question with a picture; sensitivity needs a few dozen")
        self.size = size
        self.want = [next_token(answerer.model, inputs).cpu() for _, inputs in self.batches()]

    def batches(self) -> Iterator[tuple[list[Asked], Any]]:
        rest = iter(self.asked)
        while part := list(islice(rest, self.size)):
            yield part, self.answerer.inputs(part)

    @torch.no_grad()
    def unpatched(self) -> dict[str, float]:
        """Accuracy and vision tokens a question of the model as it is."""
        score, tokens = 0.0, 0
        for part, inputs in self.batches():
            score += self.score(part, inputs)
            tokens += sum(self.answerer.vision_rows(inputs))
        return {
            "accuracy": score / len(self.asked),
            "questions": len(self.asked),
            "tokens": tokens / len(self.asked),
        }

    @torch.no_grad()
    def cost(self, cut: Cut, depth: int) -> dict[str, float]:
        """Accuracy, mean Kullback-Leibler divergence (nats), and the share of tokens really left, which whole tokens
        make a little less than asked for. Empty where pictures are so small that not one token would be left."""
        score, apart, left = 0.0, 0.0, 0.0
        with patched(self.answerer.model, cut.method(), budget=cut.budget(depth)) as model:
            try:
                for (part, inputs), want in zip(self.batches(), self.want, strict=True):
                    got = next_token(model, inputs).cpu()
                    apart += float((want.exp() * (want - got)).sum())
                    pictures = [(p.tokens_by_layer[-1], p.tokens_in, p.prompt) for p in report(model).pictures]
                    for prompt in range(len(part)):
                        kept, full = (sum(p[n] for p in pictures if p[2] == prompt) for n in (0, 1))
                        left += kept / full
                    score += self.score(part, inputs)
            except BudgetError:
                return {}
        count = len(self.asked)
        return {"accuracy": score / count, "divergence": apart / count, "left": left / count}

    def score(self, part: list[Asked], inputs: Any) -> float:
        answers = self.answerer.answers(inputs)
        return sum(self.benchmark.score(text, one.sample) for text, one in zip(answers, part, strict=True))

    @torch.no_grad()
    def attention(self) -> list[float | None]:
        """By decoder layer, the share of the last prompt row's attention that goes to vision tokens, mean over heads
        and questions; None for a layer without attention."""
        family = family_of(self.answerer.model)
        total: list[float | None] = [0.0 if family.attends(n) else None for n in range(len(family.layers))]
        for _, inputs in self.batches():
            for layer, share in attention_to_vision(self.answerer.model, inputs, self.answerer.vision(inputs)).items():
                total[layer] = (total[layer] or 0.0) + share
        return [None if share is None else share / len(self.asked) for share in total]


def attention_to_vision(model: Any, inputs: Any, vision: Tensor) -> dict[int, float]:
    """By decoder layer, the attention of each prompt's last row that goes to ``vision [B, n]``, mean over heads, summed
    over the batch. Prompts are padded on the left."""
    family, found = family_of(model), {}

    def capture(layer: int, q: Tensor, k: Tensor, mask: Any, scale: float) -> None:
        last = torch.full((q.shape[0], 1), q.shape[2] - 1, device=q.device)
        bias = row_bias(mask, last, q.shape[2], k.shape[2])[:, 0]
        weight = received_attention(q, k, last, log_size=bias, scale=scale).mean(dim=1)
        found[layer] = float(weight.masked_fill(~vision.to(weight.device), 0).sum())

    layers = [n for n in range(len(family.layers)) if family.attends(n)]
    undo = [hook_attention(family.decoder_attention(n), partial(capture, n)) for n in layers]
    try:
        model(**inputs, use_cache=False, logits_to_keep=1)
    finally:
        for back in undo:
            back()
    return found


def schedule(cuts: list[dict[str, Any]], tolerance: float) -> list[dict[str, Any]]:
    """For each share, the earliest layer before which a question-aware cut to it costs at most ``tolerance`` nats, by
    layer; shares that no layer allows are left out, and so are those that a smaller one makes needless. Not monotone in
    depth: what a layer attends to can be a worse guide than what an earlier one did."""
    steps: list[dict[str, Any]] = []
    cuts = [cut for cut in cuts if cut["rule"] == "fastv" and "divergence" in cut]
    for keep in sorted({cut["keep"] for cut in cuts}):
        fine = [cut["layer"] for cut in cuts if cut["keep"] == keep and cut["divergence"] <= tolerance]
        if fine and not any(step["layer"] <= min(fine) for step in steps):
            steps.insert(0, {"layer": min(fine), "keep": keep})
    return steps
