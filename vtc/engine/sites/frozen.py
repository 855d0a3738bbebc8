"""Vision tokens that run in the first layers and then stop: which they are, and the keys and values that a later layer
makes, by its own norm, projections and rotary tables, of the states they stopped in.

They are candidates for keys of the text: in each layer those that some row of the question looks at most, and one more
stands for the others, as heavy as they are together (``choice.py``). Candidates see each other whole while they run;
from one layer on text runs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vtc.engine.attention.masks import ReducingMask
from vtc.engine.capture.attention_hook import EndOfLayer
from vtc.engine.kv_cache import without_cache
from vtc.engine.rows import Columns, choose_rows, gather_positions
from vtc.engine.state import Candidates, Prefill, Rows
from vtc.engine.text_rows import text_rows
from vtc.errors import UnsupportedModel


def candidates_of(p: Prefill) -> Candidates:
    """The candidates behind the last cut; each layer has as many keys of them as the last stage keeps."""
    cut = p.last_cut
    if p.candidates is None or p.candidates[0] is not cut:  # one object for all layers
        count = [n + m for n, m in zip(p.remaining.count, p.remaining.newlines, strict=True)]
        place, count = vision_rows(p, cut, count)
        keys = [0] * p.batch
        for prompt, keep in zip(p.layout.prompts, p.keeps, strict=True):
            keys[prompt] += keep[-1]
        text = text_rows(p)
        of = Candidates(place, count, keys, text, asking_rows(p, text))
        if p.unasked and of.chooses:
            check_together(p)
        p.candidates = cut, of
    return p.candidates[1]


def vision_rows(p: Prefill, cut: Rows | None, living: list[int]) -> tuple[Rows, list[int]]:
    """The rows of the vision tokens that live, newlines included, as they stand behind ``cut``, which left so many of
    each picture; each prompt's number."""
    layout, count = p.layout, [0] * p.batch
    for prompt, n in zip(layout.prompts, living, strict=True):
        count[prompt] += n
    kept = ~layout.text & ~layout.spare
    if cut is not None:
        kept = kept.gather(1, cut.rows)
        kept = kept if cut.valid is None else kept & cut.valid
    inside, valid = choose_rows(kept, ~kept, count)
    sizes = None if cut is None or cut.log_size is None else cut.log_size.gather(1, inside)
    return Rows(inside if cut is None else cut.rows.gather(1, inside), valid, sizes, inside), count


def asking_rows(p: Prefill, text: Rows) -> Tensor:
    """``[B, R]``: which of the text rows stand between the last vision token of their prompt and its end, -1 padded.
    Raises ``UnsupportedModel`` where there is none."""
    row = torch.arange(p.length)
    vision = torch.stack(list(p.ids.values())).any(dim=0)
    asks = ~vision & (row > torch.where(vision, row, -1).amax(dim=1, keepdim=True)) & prompt_rows(p)
    if not bool(asks.any(dim=1).all()) and not p.unasked:
        raise UnsupportedModel(
            "a prompt ends with its picture, and tokens that stop running cannot say what comes next; put words behind "
            "the picture, or use a method whose tokens run to the end, such as divprune"
        )
    listed, there = listed_rows(asks, text.rows.device)
    # Fillers stand between the rows that are there: these alone are looked up.
    rows = text.rows if text.valid is None else text.rows.masked_fill(~text.valid, -1).cummax(dim=1).values
    return torch.searchsorted(rows, listed).masked_fill(~there, -1)


def check_together(p: Prefill) -> None:
    """Raises ``UnsupportedModel`` for words between vision tokens: they see keys that the question chooses."""
    vision = torch.stack(list(p.ids.values())).any(dim=0)
    if bool((vision.sum(dim=1) != vision.int().argmax(dim=1).neg() + p.length).any()):
        raise UnsupportedModel(
            "words stand between the vision tokens of this prompt, and what they read there is chosen by the question, "
            "so nothing behind them can be kept for others; remember one picture that comes without, or all tokens "
            "(frozen at a budget of 1.0)"
        )


def prompt_rows(p: Prefill) -> Tensor:
    """``[B, N]`` bool on the CPU: the rows that are no padding and stand before their prompt's end."""
    rows = torch.ones(p.batch, p.length, dtype=torch.bool) if p.padding is None else p.padding
    return rows if p.ends is None else rows & (torch.arange(p.length) < p.ends[:, None])


def listed_rows(rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """``[B, R]``: the rows that ``rows [B, N]`` on the CPU marks, and where there are that many."""
    most = int(rows.sum(dim=1).max())
    listed = rows.int().argsort(dim=1, descending=True, stable=True)[:, :most].contiguous()
    return listed.to(device), rows.gather(1, listed).to(device)


def later_turn(p: Prefill, device: torch.device) -> Candidates:
    """Of a forward that brings no picture: its rows choose of what the cache remembers."""
    if p.candidates is None:
        every = torch.arange(p.length, device=device).expand(p.batch, -1)
        none, nobody = Rows(every[:, :0], None, None, every[:, :0]), [0] * p.batch
        asking, there = listed_rows(prompt_rows(p), device)
        text = Rows(every, None, None, every)
        p.candidates = None, Candidates(none, nobody, nobody, text, asking.masked_fill(~there, -1))
    return p.candidates[1]


class NoQueries(nn.Module):
    """In place of a projection whose queries nobody asks for."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(1).expand(*x.shape[:-1], self.width)


@contextmanager
def without_queries(attention: nn.Module) -> Iterator[None]:
    """The module makes keys and values alone; queries, too, where its projections are no plain ones, or a backward pass
    may replay the layer without this."""
    own = attention._modules.get("q_proj")
    if type(own) is not nn.Linear or torch.is_grad_enabled():
        yield
        return
    attention._modules["q_proj"] = NoQueries(own.out_features)
    try:
        yield
    finally:
        attention._modules["q_proj"] = own


def keys_of(
    attention: nn.Module,
    place: Rows,
    states: Tensor,
    p: Prefill,
    past: int,
    forward: Callable,
    kwargs: dict[str, Any],
    backend: str,
) -> tuple[Tensor, Tensor]:
    """``[B, Hk, M, d]`` each: keys and values that one layer makes of ``states [B, M, D]``, run up to its
    ``attention``."""
    found: list[Tensor] = []

    def take(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Any:
        if p.grad and not torch.is_grad_enabled():
            raise UnsupportedModel(
                "under reentrant checkpointing no gradient would reach the states in which vision tokens stop; call "
                'model.gradient_checkpointing_enable({"use_reentrant": False})'
            )
        found.extend((k, v))
        raise EndOfLayer

    columns, total = Columns(place.rows + past), past + p.length
    mask = ReducingMask(None, place.rows, columns, p.length, total, states.dtype, backend, reduce=take)
    quiet = {name: value for name, value in without_cache(kwargs).items() if name != "hidden_states"}
    tables = gather_positions(kwargs.get("position_embeddings"), place.rows, p.length)
    try:
        with without_queries(attention):
            forward(states, **{**quiet, "attention_mask": mask, "position_embeddings": tables, "position_ids": None})
    except EndOfLayer:
        return found[0], found[1]
    raise UnsupportedModel(
        "a decoder layer does not run transformers' attention interface, so tokens that stop cannot be its keys; use a "
        "method whose tokens run to the end, such as divprune"
    )
