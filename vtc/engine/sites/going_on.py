"""Candidates that go on running where the others stop: which they are, and where both stand from there on."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from vtc.engine.rows import choose_rows
from vtc.engine.sites.frozen import asking_rows, vision_rows
from vtc.engine.stages import make_cut, remaining_tokens
from vtc.engine.state import Candidates, GoingOn, Prefill, Rows
from vtc.engine.text_rows import text_behind
from vtc.methods.base import Method


@torch.no_grad()
def going_on(p: Prefill, method: Method, of: Candidates, states: Tensor) -> GoingOn:
    """As the method says of the ``states`` that reach the layer in which its candidates stop, of which one of each
    picture does."""
    stage = len(method.stages()) - 1
    part = method.stages()[stage].running
    living = [n + lines for n, lines in zip(p.remaining.count, p.remaining.newlines, strict=True)]
    if part == 0 or min(living) == 1:
        nobody = Rows(of.text.rows[:, :0], None, None, of.text.inside[:, :0])
        every = torch.arange(of.place.rows.shape[1], device=states.device).expand(p.batch, -1)
        return GoingOn(of, of.text, of.place, [0] * len(living), nobody, every)
    keep = [min(math.ceil(part * n), n - 1) for n in living]
    with p.clock:
        cut, _ = make_cut(p, method, stage, keep, *remaining_tokens(p, states), {})
    rows = Rows(cut.rows, cut.valid, cut.log_size, cut.inside)
    vision, count = vision_rows(p, rows, keep)
    left = [n - m for n, m in zip(of.count, count, strict=True)]
    text = text_behind(p, rows)
    here = replace(of, text=text, asking=asking_rows(p, text))  # fillers are others than before
    stopped, order = stopped_rows(of.place, rows, vision, left, states.shape[1])
    return GoingOn(here, rows, stopped, keep, vision, order)


def stopped_rows(place: Rows, rows: Rows, vision: Rows, left: list[int], width: int) -> tuple[Rows, Tensor]:
    """Those rows of ``place`` that are not ``vision`` of ``rows``, ``left`` of each prompt; and where each row of
    ``place`` stands among ``vision`` and then those. Of ``width`` states that reach the layer."""
    ran = at_width(rows.inside.gather(1, vision.inside), vision.valid, width)
    runs = place.inside.new_zeros(len(ran), width + 1).scatter(1, ran, 1).gather(1, place.inside).bool()
    gone = ~runs if place.valid is None else place.valid & ~runs
    at, valid = choose_rows(gone, ~gone, left)
    sizes = None if place.log_size is None else place.log_size.gather(1, at)
    stopped = Rows(place.rows.gather(1, at), valid, sizes, place.inside.gather(1, at))
    both = torch.cat([ran, at_width(stopped.inside, valid, width)], dim=1)
    number = torch.arange(both.shape[1], device=both.device).expand_as(both)
    return stopped, both.new_zeros(len(both), width + 1).scatter(1, both, number).gather(1, place.inside)


def at_width(inside: Tensor, valid: Tensor | None, width: int) -> Tensor:
    """``inside`` with its fillers behind all states."""
    return inside if valid is None else inside.masked_fill(~valid, width)
