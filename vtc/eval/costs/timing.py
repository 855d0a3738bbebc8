"""Milliseconds of a prefill, time to the first token and decode speed, each cell in turns with the unpatched model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from statistics import median, quantiles
from typing import Any

import torch
from transformers import StoppingCriteria

import vtc
from vtc.eval.asking.generate import Answerer, Asked
from vtc.eval.costs.interleaved import Turns

WARM_UP = 1  # turns
BASE_EVERY = 3  # cells
DECODED = 8  # tokens after the first

Enter = Mapping[str, Callable[[], AbstractContextManager[Any]]]


def timing(
    answerer: Answerer, enter: Enter, asked: list[Asked], repeats: int, turns: Turns, part: str = "timing"
) -> dict[str, dict[str, Any]]:
    """Times of one batch in every cell (``enter``: its name, and what puts the model into it).

    Cells take turns, so that a slow moment of the machine hits all alike, and the unpatched model runs again before
    every third of them. Medians over ``repeats`` turns; ``*speedup``: the median over turns of the unpatched model's
    time by the cell's; ``*iqr*``: inter-quartile ranges.
    """
    inputs = answerer.inputs(asked)
    base: dict[str, float] = {}
    last = -1

    def beside_base(number: int, name: str) -> dict[str, float]:
        nonlocal base, last
        if number % BASE_EVERY == 0 or number != last + 1:  # a run that goes on starts anywhere
            base = once(answerer, inputs)
        last = number
        with enter[name]() as model:
            took = once(answerer, inputs) if vtc.patch_of(model) else base
        return took | ratios(base, took)

    seen = turns.take(part, enter, repeats, beside_base, warm_up=WARM_UP)
    settings = {"batch": len(asked), "repeats": repeats, "warm_up": WARM_UP, "decoded": DECODED}
    return {name: figures({key: [t[key] for t in each] for key in each[0]}) | settings for name, each in seen.items()}


def once(answerer: Answerer, inputs: Any) -> dict[str, float]:
    """One prefill and one generation of ``DECODED`` + 1 tokens, by the clock."""
    device, batch = answerer.model.device, inputs["input_ids"].shape[0]
    prefill = clock(lambda: answerer.prefill(inputs), device)
    selection = vtc.report(answerer.model).selection_ms if vtc.patch_of(answerer.model) else 0.0
    marks = Marks(device)
    start = now(device)
    answerer.generate(inputs, min_new_tokens=DECODED + 1, max_new_tokens=DECODED + 1, stopping_criteria=[marks])
    decode = (marks.times[-1] - marks.times[0]) / 1e3
    return {
        "prefill_ms": prefill,
        "selection_ms": selection,
        "ttft_ms": marks.times[0] - start,
        "decode_tokens_per_s": batch * DECODED / decode,
    }


class Marks(StoppingCriteria):
    """Notes when each new token is there, and never stops."""

    def __init__(self, device: torch.device):
        self.device = device
        self.times: list[float] = []  # milliseconds

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.times.append(now(self.device))
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def ratios(base: dict[str, float], took: dict[str, float]) -> dict[str, float]:
    """How many times as fast as the unpatched model moments before."""
    return {
        "speedup": base["prefill_ms"] / took["prefill_ms"],
        "ttft_speedup": base["ttft_ms"] / took["ttft_ms"],
        "decode_speedup": took["decode_tokens_per_s"] / base["decode_tokens_per_s"],
    }


def figures(values: Mapping[str, list[float]]) -> dict[str, float]:
    """Medians, and the spread of what was timed."""
    spreads = {"iqr_ms": "prefill_ms", "ttft_iqr_ms": "ttft_ms", "decode_iqr": "decode_tokens_per_s"}
    spreads |= {f"{ratio}_iqr": ratio for ratio in ("speedup", "ttft_speedup", "decode_speedup")}
    return {key: median(each) for key, each in values.items()} | {k: spread(values[v]) for k, v in spreads.items()}


def clock(run: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call."""
    start = now(device)
    run()
    return now(device) - start


def now(device: torch.device) -> float:
    """Milliseconds of a steady clock, when the accelerator has done all it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() * 1e3


def spread(values: Sequence[float]) -> float:
    """The inter-quartile range."""
    if len(values) < 2:
        return 0.0
    low, _, high = quantiles(values, n=4, method="inclusive")
    return high - low
