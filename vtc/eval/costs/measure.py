"""What a cell costs: tokens, cache bytes and FLOPs counted from what ran; time, memory and energy measured.

``docs/evaluation.md`` says what each number is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from statistics import mean
from typing import Any

import torch

import vtc
from vtc.engine.kv_cache import cache_bytes, cache_in
from vtc.errors import VTCError
from vtc.eval.asking.generate import Answerer, Asked
from vtc.eval.asking.limits import of_the_sample, told
from vtc.eval.cells import Cell
from vtc.eval.costs.energy import energy
from vtc.eval.costs.flops import counter
from vtc.eval.costs.interleaved import Turns
from vtc.eval.costs.memory import peak_memory
from vtc.eval.costs.timing import timing

COST_PROBES = 4
Figures = dict[str, Any]


def entered(model: Any, cell: Cell) -> AbstractContextManager[Any]:
    """The model as the cell wants it. A learned method must be the one that this model learned, if it learned one."""
    if cell.budget is None:
        return plain(model)
    method, outer = cell.method(), vtc.patch_of(model)
    if outer is not None and outer.method.learns and method.learns and method != outer.method:
        raise VTCError(f"this model learned {outer.method}, and the cell asks for {method}; give the same options")
    return vtc.patched(model, method, budget=cell.budget)


@contextmanager
def plain(model: Any) -> Iterator[Any]:
    """The model without the patch it may have come with."""
    outer = vtc.patch_of(model)
    vtc.unpatch(model)
    try:
        yield model
    finally:
        if outer is not None:
            outer.install()


def everything(
    answerer: Answerer, cells: Sequence[Cell], probes: list[Asked], repeats: int, batch: int, turns: Turns
) -> dict[str, dict[str, Any]]:
    """``cost`` of each cell by name; with ``repeats`` also ``timing`` (a batch of ``batch`` probes), ``timing_single``
    (a batch of one, where ``batch`` is another), ``memory`` and ``energy`` (of that batch).

    What cannot be measured does not end a run: all that is counted, or all that is timed, is left out then, and
    ``not_measured`` says why."""
    named = {cell.name: cell for cell in cells}
    enter = {name: partial(entered, answerer.model, cell) for name, cell in named.items()}

    def counted() -> dict[str, dict[str, Figures]]:
        found = turns.take("cost", named, 1, lambda _, name: cost(answerer, named[name], probes[:COST_PROBES]))
        return {"cost": {name: each[0] for name, each in found.items()}}

    def timed() -> dict[str, dict[str, Figures]]:
        sizes = {"timing": probes[:batch]} | ({"timing_single": probes[:1]} if batch > 1 else {})
        parts = {key: timing(answerer, enter, asked, repeats, turns, key) for key, asked in sizes.items()}
        parts["memory"] = peak_memory(answerer, enter, probes[:batch], turns)
        return parts | {"energy": energy(answerer, enter, probes[:batch], turns)}

    out: dict[str, Figures] = {name: {} for name in named}
    for measured in (counted, timed) if repeats else (counted,):
        parts, reason = attempt(measured)
        if reason:
            return {name: entry | {"not_measured": reason} for name, entry in out.items()}
        for key, found in parts.items():
            for name, figures in found.items():
                out[name][key] = figures
    return out


def attempt(measured: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """What it gives, and why it gives nothing: a batch that fits no memory, a picture that fails alone."""
    try:
        return measured(), ""
    except Exception as error:
        if not of_the_sample(error):
            raise
        return {}, told(error)


def cost(answerer: Answerer, cell: Cell, probes: Sequence[Asked]) -> dict[str, Any]:
    """Of one prompt, the mean over ``probes``, each run alone:

    ``tokens`` and ``rows`` (layer-averaged, a picture) and ``flops`` (decoder prefill) from the report, ``kv_bytes`` of
    the real cache after the prefill, ``forward_flops`` of the whole forward as torch counts them. The unpatched model's
    tokens, rows and decoder FLOPs are read through a patch that keeps everything (None where that patch is refused).
    """
    figures = ran(answerer, cell, probes)
    if cell.patched:
        return figures
    try:
        counted = ran(answerer, Cell("random", 1.0), probes)
    except VTCError:
        counted = {}
    return figures | {key: counted.get(key) for key in ("tokens", "rows", "flops")}


def ran(answerer: Answerer, cell: Cell, probes: Sequence[Asked]) -> dict[str, float]:
    """What a prefill of each probe left and took, the mean; without a patch there is no report of tokens and flops."""
    each: list[dict[str, float]] = []
    with entered(answerer.model, cell) as model:
        for probe in probes:
            with torch.no_grad(), counter() as count:
                cache = cache_in(model(**answerer.inputs([probe]), use_cache=True, logits_to_keep=1))
            figures: dict[str, float] = {"kv_bytes": cache_bytes(cache), "forward_flops": count.get_total_flops()}
            if cell.patched:
                report = vtc.report(model)
                figures |= {"tokens": report.average_tokens, "rows": report.average_rows, "flops": report.flops}
            each.append(figures)
    return {key: mean(figures[key] for figures in each) for key in each[0]}
