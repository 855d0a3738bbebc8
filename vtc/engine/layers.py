"""One decoder layer on fewer rows, or with fewer keys: what enters it, how it is called, what leaves it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtc.engine.kv_cache import cache_given, row_layer
from vtc.engine.layer_arguments import LayerArguments
from vtc.engine.rows import put_rows, restore_rows
from vtc.engine.sites.choice import Choice
from vtc.engine.sites.frozen import candidates_of, keys_of, later_turn
from vtc.engine.sites.going_on import going_on
from vtc.engine.sites.kv_reduction import KeyReducer
from vtc.engine.sites.token_routing import Router
from vtc.engine.stages import merge_rows, regather
from vtc.engine.state import Candidates, Cut, LayerPlan, Prefill, Rows
from vtc.kernels.gather import gather_rows
from vtc.methods.base import Method


def enter(p: Prefill, plan: LayerPlan, states: Tensor) -> Tensor:
    if plan.regather is not None:
        states = regather(states, p, plan.regather)
        p.restored = None
    if plan.enter is not None:
        with p.clock:
            states = merge_rows(states, plan.enter)
    return states


def leave(p: Prefill, cut: Rows, output: Any) -> Any:
    short = output[0] if isinstance(output, tuple) else output
    full = restore_rows(short, cut.rows, cut.valid, p.length)
    p.restored = (full, short)
    return (full, *output[1:]) if isinstance(output, tuple) else full


def run_layer(forward: Callable, states: Tensor, args: tuple, kwargs: dict[str, Any]) -> Any:
    """A layer on ``states``, given by place or by name as the model does."""
    return forward(states, *args[1:], **kwargs) if args else forward(**{**kwargs, "hidden_states": states})


def on_some_rows(
    arguments: LayerArguments,
    router: Router | None,
    p: Prefill,
    cut: Rows,
    index: int,
    states: Tensor,
    forward: Callable,
    args: tuple,
    kwargs: dict[str, Any],
) -> Any:
    """A layer that some rows skip: they leave it as they came."""
    short = gather_rows(states, cut.inside)
    p.rows_by_layer[index] = short.shape[1]
    given, layer = kwargs.get("attention_mask"), row_layer(cache_given(kwargs), index)
    kwargs = arguments.on_rows(p, cut, index, short, kwargs)
    gate = None
    if router is not None and isinstance(cut, Cut) and router.method.learns and torch.is_grad_enabled():
        gate = router.gate(p, cut, index)
        gated = router.mask(p, cut, index, layer, given, kwargs["attention_mask"], short, arguments.backend)
        kwargs["attention_mask"] = gated
    output = run_layer(forward, short, args, kwargs)
    out = output[0] if isinstance(output, tuple) else output
    if gate is not None:  # a token's gate gets what running it did to its own row; its key's worth is in the mask
        out = out + (gate - gate.detach())[..., None].to(out.dtype) * (out - short).detach()
    full = put_rows(states, out, cut.inside, cut.valid)
    return (full, *output[1:]) if isinstance(output, tuple) else full


def on_fewer_keys(
    arguments: LayerArguments,
    keys: KeyReducer,
    p: Prefill,
    plan: LayerPlan,
    index: int,
    states: Tensor,
    forward: Callable,
    args: tuple,
    kwargs: dict[str, Any],
) -> Any:
    """A layer whose rows are all there and whose keys are reduced inside its attention."""
    layer = row_layer(cache_given(kwargs), index)
    mask = keys.mask(p, plan, index, layer, kwargs.get("attention_mask"), states, arguments.backend)
    if layer is not None:
        layer.expect(None, p.length)
    return forward(*args, **{**kwargs, "attention_mask": mask})


def on_candidates(
    arguments: LayerArguments,
    p: Prefill,
    plan: LayerPlan,
    method: Method,
    first: int,
    index: int,
    states: Tensor,
    forward: Callable,
    args: tuple,
    kwargs: dict[str, Any],
) -> Any:
    """A layer that chooses its keys of the candidates, which stop before layer ``first``, or in which they rest."""
    states, stopped, rests = enter(p, plan, states), p.stopped, index in method.rest
    of = plan.candidates or candidates_of(p)  # a replay for a gradient comes after later cuts
    if index == first:  # anew where it is replayed for a gradient
        p.going = going_on(p, method, of, states) if p.going is None else p.going
        stopped = gather_rows(states, p.going.stopped.inside)
        p.stopped = stopped if p.stopped is None else p.stopped
        states = gather_rows(states, p.going.rows.inside)
    rows: Rows | None = plan.rows
    if index >= first and p.going is not None:
        of, rows = p.going.candidates, p.going.rows
        plan.runs = of.text if rests and not p.going.none else None
    p.rows_by_layer[index] = states.shape[1]
    if plan.runs is not None:
        output = on_some_rows(arguments, None, p, plan.runs, index, states, forward, args, kwargs)
    elif rests:
        kwargs = arguments.on_rows(p, of.text, index, states, kwargs)
        output = run_layer(forward, states, args, kwargs)
    else:
        plan.candidates, stopped = of, stopped if index >= first else None
        output = on_chosen_keys(arguments, p, plan, of, index, states, forward, args, kwargs, stopped)
    return leave(p, rows, output) if plan.restore and rows is not None else output


def on_chosen_keys(
    arguments: LayerArguments,
    p: Prefill,
    plan: LayerPlan,
    of: Candidates,
    index: int,
    states: Tensor,
    forward: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    stopped: Tensor | None = None,
) -> Any:
    """A layer whose text sees the candidates it chooses: ``states`` are those of text and candidates, or, where some
    have ``stopped`` in these states, of those that run."""
    layer = row_layer(cache_given(kwargs), index)
    past = 0 if layer is None else layer.logical
    held = layer.columns(0, p.batch, states.device) if layer is not None and past else None
    given, attn = kwargs.get("attention_mask"), arguments.backend
    choice = Choice(p, plan, of, layer, held, past, given, attn, states.dtype)
    mask: Any
    if not p.brings:
        mask = choice.beside(None)
    elif stopped is None or p.going is None:
        kwargs = kwargs if plan.rows is None else arguments.placed(p, plan.rows, kwargs)
        mask = choice.among(plan.rows)
    else:
        attention, place = arguments.family.decoder_attention(index), p.going.stopped
        made = keys_of(attention, place, stopped, p, past, forward, kwargs, attn)
        mask = choice.beside(made) if p.going.none else choice.among_some(p.going, made)
        kwargs = arguments.placed(p, p.going.rows, kwargs)
    if layer is not None:
        layer.expect(None, p.length)
    return run_layer(forward, states, args, {**kwargs, "attention_mask": mask})


def in_later_turn(
    arguments: LayerArguments,
    p: Prefill,
    index: int,
    states: Tensor,
    forward: Callable,
    args: tuple,
    kwargs: dict[str, Any],
) -> Any:
    """A layer of a forward that brings no picture, on a cache whose candidates it chooses of anew."""
    plan = p.plans.setdefault(index, LayerPlan())
    plan.candidates = later_turn(p, states.device)
    return on_chosen_keys(arguments, p, plan, plan.candidates, index, states, forward, args, kwargs)
