"""What a cell costs: tokens, cache bytes and FLOPs from what ran, milliseconds beside the unpatched model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from statistics import mean, median, quantiles
from typing import Any

import torch

import vtc
from vtc.errors import VTCError
from vtc.eval.cells import Cell
from vtc.eval.generate import Answerer, Asked

WARM_UP = 1  # turns
BASE_EVERY = 3  # cells


def entered(model: Any, cell: Cell) -> AbstractContextManager[Any]:
    """The model as the cell wants it."""
    return nullcontext(model) if cell.budget is None else vtc.patched(model, cell.method(), budget=cell.budget)


def cost(answerer: Answerer, cell: Cell, probes: Sequence[Asked]) -> dict[str, float | None]:
    """``tokens`` (layer-averaged, a picture), ``kv_bytes`` and ``flops`` (decoder prefill) of one prompt: the mean over
    ``probes``, each run alone. The unpatched model is counted through a patch that keeps everything (None where that
    patch is refused)."""
    counted = cell if cell.patched else Cell("random", 1.0)
    try:
        with entered(answerer.model, counted) as model:
            reports = []
            for probe in probes:
                prefill(model, answerer.inputs([probe]))
                reports.append(vtc.report(model))
    except VTCError:
        if cell.patched:
            raise
        return {"tokens": None, "kv_bytes": None, "flops": None}
    return {
        "tokens": mean(r.average_tokens for r in reports),
        "kv_bytes": mean(r.kv_bytes for r in reports),
        "flops": mean(r.flops for r in reports),
    }


def timing(answerer: Answerer, cells: Sequence[Cell], probes: list[Asked], repeats: int) -> dict[str, dict[str, Any]]:
    """Prefill milliseconds of one batch of ``probes`` in every cell, vision tower and selection inside.

    Cells take turns, so that a slow moment of the machine hits all alike, and the unpatched model runs again before
    every third of them: ``speedup`` is the median over ``repeats`` turns of its time by the cell's. ``iqr_ms``: the
    inter-quartile range.
    """
    model, inputs = answerer.model, answerer.inputs(probes)
    times: dict[str, list[float]] = {cell.name: [] for cell in cells}
    ratios: dict[str, list[float]] = {cell.name: [] for cell in cells}
    selection: dict[str, list[float]] = {cell.name: [] for cell in cells}
    for turn in range(-WARM_UP, repeats):
        base = 0.0
        for n, cell in enumerate(cells):
            if n % BASE_EVERY == 0:
                base = clock(lambda: prefill(model, inputs), model.device)
            with entered(model, cell):
                took = clock(lambda: prefill(model, inputs), model.device) if cell.patched else base
                chosen = vtc.report(model).selection_ms if cell.patched else 0.0
            if turn >= 0:
                times[cell.name].append(took)
                ratios[cell.name].append(base / took)
                selection[cell.name].append(chosen)
    return {
        name: {
            "prefill_ms": median(took),
            "iqr_ms": spread(took),
            "speedup": median(ratios[name]),
            "selection_ms": median(selection[name]),
            "batch": len(probes),
            "repeats": repeats,
        }
        for name, took in times.items()
    }


@torch.no_grad()
def prefill(model: Any, inputs: Any) -> None:
    """One forward over the prompts that fills the cache and computes the last logits only, as ``generate`` begins."""
    model(**inputs, use_cache=True, logits_to_keep=1)


def clock(run: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call, waiting for the accelerator before and after."""
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return (time.perf_counter() - start) * 1e3


def wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def spread(values: list[float]) -> float:
    """The inter-quartile range."""
    if len(values) < 2:
        return 0.0
    low, _, high = quantiles(values, n=4, method="inclusive")
    return high - low
