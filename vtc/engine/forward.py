"""One forward: find the vision rows, run the stages, gather rows before decoder layers, put them back after the last.

Outside the decoder layers nothing changes shape. States stay short from the first cut to the last layer; they are
restored earlier only where something between the layers reads them (DeepStack, ``output_hidden_states``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vtc.budget.spend import Spend
from vtc.engine.capture.decoder import DecoderCapture
from vtc.engine.capture.stage_view import StageView
from vtc.engine.capture.tower import PIXELS, TowerCapture
from vtc.engine.embedded import pictures_in
from vtc.engine.kv_cache import cache_bytes, cache_given, check_cache, held_rows, remembers, stored
from vtc.engine.layer_arguments import LayerArguments
from vtc.engine.layers import enter, in_later_turn, leave, on_candidates, on_fewer_keys, on_some_rows, run_layer
from vtc.engine.prompt_ends import PromptEnds, real_part, real_rows
from vtc.engine.report import Report, summarise
from vtc.engine.sites.kv_reduction import KeyReducer
from vtc.engine.sites.token_routing import Router
from vtc.engine.stage_placement import place_stages
from vtc.engine.stages import cut_stage, open_prefill, regather, remaining_tokens
from vtc.engine.state import Cut, LayerPlan, Prefill
from vtc.engine.stopwatch import Stopwatch
from vtc.engine.text_rows import text_rows
from vtc.errors import NotReduced, UnsupportedModel
from vtc.methods.base import Method
from vtc.models.base import Family
from vtc.signals.base import Signal
from vtc.tokens import Budget

REPLAYED = 8  # forwards whose layers a backward pass may still replay (activation checkpointing)


class Engine:
    """Runs one method at one budget on one model. Installs nothing: ``vtc.patching.patch.Patch`` does, and undoes
    it."""

    def __init__(self, family: Family, method: Method, budget: Budget):
        self.family, self.method = family, method
        self.depth = len(family.layers)
        self.stage_at = place_stages(method, family)
        self.freezes_at = next((at for at, n in self.stage_at.items() if method.stages()[n].freezes), None)
        self.remembers = any(stage.memory for stage in method.stages())
        self.tower, self.decoder, self.arguments = TowerCapture(family), DecoderCapture(family), LayerArguments(family)
        self.set_budget(budget)
        self.bypass = True  # leave a forward alone when nothing in it has to go
        self.paused = False  # leave every forward alone
        self.unasked = False  # what comes is a picture alone, which is kept whole for later questions
        self.current: Prefill | None = None
        self.earlier: deque[Prefill] = deque(maxlen=REPLAYED)
        self.prompt_ends = PromptEnds()
        self._finish: Callable[[], Report] | None = None
        self._report: Report | None = None

    def set_budget(self, budget: Budget) -> None:
        """Spend ``budget`` from the next forward on."""
        if isinstance(self.method.spend, Spend):
            self.method.spend.agree(budget)
        self.budget = budget
        first = next(iter(self.stage_at))
        self.keys = KeyReducer(self.method, budget, first, self.family) if self.method.reduces_keys else None
        self.router = Router(self.method, budget, first, self.depth) if self.method.skips_layers else None

    def asked(self) -> Iterator[tuple[int, Signal]]:
        """Every signal that the method asks for, and the decoder layer before which it does."""
        for first, stage in self.stage_at.items():
            each = self.method.reduces_keys or self.method.skips_layers  # asked anew in every layer from its stage on
            for layer in range(first, self.depth if each else first + 1):
                yield from ((layer, signal) for signal in self.method.signals(stage))

    # ------------------------------------------------------------- before and after the model

    def begin(self, kwargs: dict[str, Any]) -> None:
        """Before the forward of the module that places features into placeholders."""
        self._forget()
        if self.paused:
            return
        ids, embeds = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
        given = ids if ids is not None else embeds
        if given is None:
            return
        features = dict(kwargs.get("mm_encoder_outputs") or {})
        if kwargs.get("image_hidden_states") is not None:
            features["image"] = kwargs["image_hidden_states"]
        fresh = any(kwargs.get(name) is not None for name in PIXELS)
        brings = fresh or any(f is not None for f in features.values())
        batch, length = given.shape[:2]
        found: dict[str, Tensor] = {}
        if ids is None and length > 1 and not brings:
            found = pictures_in(self.family, self.tower.runs, given, real_rows(kwargs.get("attention_mask"), length))
        cache, grad, clock = cache_given(kwargs), torch.is_grad_enabled(), Stopwatch(given.device.type == "cuda")
        if length == 1 or not (brings or found):
            # Text only, or a decode step (whose token may even look like a placeholder).
            if length > 1 and remembers(cache):
                padding, ends = real_part(kwargs, self.prompt_ends, batch, length)
                self.current = Prefill({}, None, padding, length, batch, clock, ends, grad, brings=False)
                self.current.remembers = self.remembers
            elif grad:
                self.current = Prefill({}, None, None, length, batch, clock, grad=True, brings=False)
            return
        check_cache(cache)
        if kwargs.get("cu_seq_lens_q") is not None:
            raise UnsupportedModel("packed sequences (cu_seq_lens) are not supported; pad the prompts instead")
        if fresh:
            self.tower.runs = {}
        self.tower.adopt(features)
        on_cpu = None if ids is None else ids.cpu()
        padding, ends = real_part(kwargs, self.prompt_ends, batch, length)
        self.current = Prefill(
            ids=found if on_cpu is None else self._placeholders(on_cpu),
            input_ids=on_cpu,
            padding=padding,
            length=length,
            batch=batch,
            clock=clock,
            ends=ends,
            grad=grad,
            remembers=self.remembers or self.unasked,
            unasked=self.unasked,
        )

    def _forget(self) -> None:
        """Before another forward: the last one can only be asked for again by a backward pass."""
        if self.current is not None and self.current.grad:
            self.earlier.append(self.current)
        self.current = None
        self.arguments.forget()

    def _placeholders(self, ids: Tensor) -> dict[str, Tensor]:
        found = {modality: ids == token for modality, token in self.family.token_ids.items()}
        return {modality: where for modality, where in found.items() if bool(where.any())}

    def seen_placeholders(self, masks: tuple[Tensor, ...]) -> None:
        """The placeholder masks the model built itself (pictures, then videos): needed for prompts of embeddings."""
        p = self.current
        if p is None or p.input_ids is not None or not p.brings:
            return
        for modality, mask in zip(("image", "video"), masks, strict=False):
            where = (mask[..., 0] if mask.dim() == 3 else mask).cpu()
            if bool(where.any()) and modality in self.tower.runs:
                p.ids[modality] = where

    def begin_text(self, kwargs: dict[str, Any]) -> None:
        """Before the forward of the text model."""
        if self.current is not None:
            wanted = kwargs.get("output_hidden_states")
            wanted = getattr(self.family.decoder.config, "output_hidden_states", False) if wanted is None else wanted
            everywhere = wanted is not None and wanted is not False
            self.current.between = self.depth if everywhere else self.family.reads_between(kwargs)

    def end(self, cache: Any) -> None:
        """After the forward: check that what had to be reduced was, and keep what the report needs."""
        p = self.current
        if p is None or not p.brings:
            return
        if not p.opened or (p.over and not self._all_cut(p)):
            raise NotReduced(
                f"this forward brought pictures and {self.method.name} did not run in its decoder layers; give the "
                "prompt as input_ids and call the model itself, not a part of it, or vtc.unpatch(model)"
            )
        p.restored = None
        if p.stopped is not None and not p.grad:
            p.stopped = p.stopped.new_empty(0)  # the pass outlives the forward
        self.arguments.forget()
        for run in self.tower.runs.values():
            run.used = True
        held = cache_bytes(cache)
        self._report = None
        self._finish = partial(summarise, p, self.family, self.method, self.budget, self.stage_at, held)

    def _all_cut(self, p: Prefill) -> bool:
        if self.router is not None:
            return all(p.plans[index].runs is not None for index in range(self.router.first, self.depth))
        if self.keys is None:
            frozen = self.freezes_at is not None
            return len(p.cuts) + frozen == len(self.stage_at) and (p.stopped is not None or not frozen)
        return all(p.plans[index].keys is not None for index in range(self.keys.first, self.depth))

    def report(self) -> Report:
        """The last prefill that brought pictures; raises ``NotReduced`` before there was one."""
        if self._finish is None:
            raise NotReduced(
                "no picture has run through this patch yet; call the model on a prompt with a picture first"
            )
        if self._report is None:
            self._report = self._finish()
        return self._report

    # ------------------------------------------------------------- one decoder layer

    def layer(self, index: int, forward: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Run decoder layer ``index`` on the rows that live there."""
        states = args[0] if args else kwargs["hidden_states"]
        cache = cache_given(kwargs)
        p = None if self.paused else self._pass_of(index, kwargs.get("position_embeddings"))
        if p is None or not p.ids:
            layer = stored(cache, index)
            if p is not None and layer is not None and layer.memory is not None and p.asks:
                return in_later_turn(self.arguments, p, index, states, forward, args, kwargs)
            return forward(*args, **self.arguments.on_all_rows(index, states, kwargs))
        plan = p.plans.get(index)
        if plan is None:
            plan = p.plans[index] = self._plan(p, index, states, forward, kwargs)
        p.past_by_layer[index] = held_rows(cache, index)
        p.rows_by_layer[index] = states.shape[1]
        if self.keys is not None and p.over and index >= self.keys.first:
            return on_fewer_keys(self.arguments, self.keys, p, plan, index, states, forward, args, kwargs)
        if p.over and self.freezes_at is not None:
            first = self.freezes_at
            return on_candidates(self.arguments, p, plan, self.method, first, index, states, forward, args, kwargs)
        rows = plan.runs or plan.rows
        if rows is None:
            return forward(*args, **self.arguments.on_all_rows(index, states, kwargs))
        states = enter(p, plan, states)
        if rows is plan.runs:
            output = on_some_rows(self.arguments, self.router, p, rows, index, states, forward, args, kwargs)
        else:
            p.rows_by_layer[index] = states.shape[1]
            kwargs = self.arguments.on_rows(p, rows, index, states, kwargs)
            output = run_layer(forward, states, args, kwargs)
        return leave(p, plan.rows, output) if plan.rows is not None and plan.restore else output

    def _pass_of(self, index: int, tables: Any) -> Prefill | None:
        """The forward this call belongs to: the current one, or an earlier one whose layer is replayed for a gradient
        (known by its rotary tables, which a replay gets again)."""
        p = self.current
        if p is not None and p.tables.setdefault(index, tables) is tables:
            return p
        for earlier in self.earlier:
            if earlier.tables.get(index) is tables:
                return earlier
        if p is None:
            return None
        raise NotReduced(
            f"decoder layer {index} is replayed for a forward that is more than {REPLAYED} forwards back, so what it "
            "dropped is no longer known; call backward sooner"
        )

    def _plan(self, p: Prefill, index: int, states: Tensor, forward: Callable, kwargs: dict[str, Any]) -> LayerPlan:
        if not p.opened:
            open_prefill(p, self.family, self.method, self.budget, tuple(self.stage_at), self.tower.runs, states)
            p.over = p.over or not self.bypass
            if p.over:
                self._show_input(p, states)
        if self.router is not None:
            if not p.over or index < self.router.first:
                return LayerPlan()
            with p.clock, torch.no_grad():
                view = self._view(p, index, states, forward, kwargs)
                signals = view.signals(self.method.signals(0))
                return LayerPlan(runs=self.router.cut(p, index, view.tokens, view.position, signals))
        if p.over and self.freezes_at is not None and index > self.freezes_at:
            there = None if p.going is None or p.restored is None else p.going.rows
            return LayerPlan(regather=there, restore=self._restores(p, index))
        plan = LayerPlan(regather=p.last_cut if p.restored is not None else None, rows=p.last_cut)
        if p.over and index == self.freezes_at:
            return replace(plan, restore=self._restores(p, index))
        if index in self.stage_at and p.over and self.keys is None:
            with p.clock, torch.no_grad():  # gradients flow through the values, which a replay makes anew
                seen = states if plan.regather is None else regather(states, p, plan.regather)
                plan.enter = plan.rows = self._select(p, index, seen, forward, kwargs)
            p.cuts.append(plan.enter)
        if p.over and index in self.method.rest and index != self.freezes_at:
            plan.runs = text_rows(p)
        plan.restore = plan.rows is not None and self._restores(p, index)
        return plan

    def _restores(self, p: Prefill, index: int) -> bool:
        """Whether full-length states leave the layer."""
        return index == self.depth - 1 or index < p.between

    def _select(self, p: Prefill, index: int, states: Tensor, forward: Callable, kwargs: dict[str, Any]) -> Cut:
        stage, view = self.stage_at[index], self._view(p, index, states, forward, kwargs)
        signals = view.signals(self.method.signals(stage))
        return cut_stage(p, self.method, stage, view.tokens, view.position, signals, self.family.hybrid)

    def _view(self, p: Prefill, index: int, states: Tensor, forward: Callable, kwargs: dict[str, Any]) -> StageView:
        tokens, position = remaining_tokens(p, states)
        run_ahead = partial(self.decoder.run_ahead, p, index, states, forward, kwargs)
        return StageView(p, self.family, index, tokens, position, states, run_ahead)

    @torch.no_grad()
    def _show_input(self, p: Prefill, states: Tensor) -> None:
        """The decoder's input, for the signals that ask to see it."""
        asking = {signal.source for _, signal in self.asked() if signal.source.sees_input}
        if asking:
            with p.clock:
                view = StageView(p, self.family, 0, *remaining_tokens(p, states), states)
                p.at_input = {signal: signal.at_input(view) for signal in asking}
