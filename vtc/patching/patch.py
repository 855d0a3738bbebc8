"""What one method at one budget changes on one model."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from vtc.engine.attention.attend import attend
from vtc.engine.capture.attention_hook import hook_attention
from vtc.engine.capture.install import hooks_of
from vtc.engine.forward import Engine
from vtc.engine.kv_cache import cache_in, check_layers
from vtc.engine.sites.tower_merging import MergingTower, unmasked
from vtc.engine.stages import keeps_of
from vtc.errors import UnsupportedModel, VTCError
from vtc.methods._spelling import spell
from vtc.methods.base import Method
from vtc.models import family_of
from vtc.models.base import Weakly
from vtc.models.inspection import unwrapped
from vtc.patching.changes import Changes, method_of, refuse_copies
from vtc.signals.tower_groups import TowerGroups
from vtc.tokens import Budget

ATTRIBUTE = "_vtc_patch"
LEARNED = "vtc_learned"  # the submodule that holds what a method learns


class Patch:
    """One method at one budget on one model. Reachable as ``vtc.patch_of(model)``; undone by ``vtc.unpatch(model)``.

    What a method learns is a submodule of the model while the patch is on, ``model.vtc_learned``: parameters, state
    dict, ``.to`` and ``.train`` see it. ``patch_of(model).method.module`` is the same object.

    The model owns its patch, the patch what it lends to the model's modules (``changes.py``); nothing here may hold the
    model itself, or it would outlast its last reference.
    """

    model = Weakly()

    def __init__(self, model: nn.Module, method: Method, budget: Budget):
        self.model, self.budget = unwrapped(model), budget
        self.family = family_of(self.model)
        devices = {str(p.device) for p in self.family.layers.parameters()}
        if len(devices) > 1:
            raise UnsupportedModel(
                f"the decoder layers stand on {len(devices)} devices ({', '.join(sorted(devices))}) and rows are "
                "gathered on one; load the model on a single device"
            )
        self.method = method.bound(self._learned(method))
        self.engine = Engine(self.family, self.method, budget)
        self.changes = Changes()
        self._lock = threading.RLock()

    def _learned(self, method: Method) -> nn.Module | None:
        """The learned part of ``method``: that of an equal method this model is patched with, or a new one."""
        older = self.model.__dict__.get(ATTRIBUTE)
        if older is not None and older.method == method:
            return older.method.module
        module = method.build(self.model)
        if module is None:
            return None
        like = next(p for p in self.family.decoder.parameters() if p.is_floating_point())
        return module.to(like.device, like.dtype).train(self.model.training)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {spell(self.method)} at {self.budget}>"

    def set_budget(self, budget: int | float | str | Budget) -> None:
        """Spend another budget from the next forward on; what was learned stays. Raises ``BudgetError``."""
        self.budget = Budget.of(budget)
        self.engine.set_budget(self.budget)

    def install(self) -> Patch:
        """Make every change; on an error none remains."""
        try:
            self.changes.replace(self.model, "__reduce_ex__", refuse_copies)
            self._make_changes()
            object.__setattr__(self.model, ATTRIBUTE, self)
            forget_compiled()
        except BaseException:
            self.remove()
            raise
        return self

    def _make_changes(self) -> None:
        family = self.family
        if self.method.module is not None:
            self.model.add_module(LEARNED, self.method.module)
        for modality in ("image", "video"):
            if hasattr(family.base, f"get_{modality}_features"):
                self._wrap_tower(family.base, modality)
        if hasattr(family.base, "get_placeholder_mask"):
            self._wrap_placeholders(family.base)
        check_layers(family.layers)
        for index, layer in enumerate(family.layers):
            self._wrap_layer(layer, index)
        self._wrap_base(family.base)
        self._wrap_model(self.model)
        begin_text = self.changes.lend(_named(family.decoder, self.engine.begin_text))
        self.changes.undone_by(family.decoder.register_forward_pre_hook(begin_text, with_kwargs=True).remove)
        for attention, capture in hooks_of(self.engine):
            self.changes.undone_by(hook_attention(attention, self.changes.lend(capture)))
        self._weigh_keys()
        self._merge_in_tower()

    @contextmanager
    def learned_aside(self) -> Iterator[None]:
        """The model without what was learned: it saves as the plain model it is."""
        module = self.model._modules.pop(LEARNED, None)
        try:
            yield
        finally:
            if module is not None:
                self.model.add_module(LEARNED, module)

    def _wrap_layer(self, layer: nn.Module, index: int) -> None:
        forward, engine = method_of(layer, "forward"), self.engine

        # The layer's forward and not its hooks: theirs then see what passes between layers, whatever their order.
        @functools.wraps(forward)
        def on_rows(*args, **kwargs):
            return engine.layer(index, forward, args, kwargs)

        self.changes.replace(layer, "forward", on_rows)

    def _wrap_base(self, base: nn.Module) -> None:
        """What every forward passes, whoever calls it."""
        forward, engine, lock = method_of(base, "forward"), self.engine, self._lock
        names = list(inspect.signature(forward).parameters)

        @functools.wraps(forward)
        def around(*args, **kwargs):
            with alone(lock):
                engine.begin({**dict(zip(names, args, strict=False)), **kwargs})
                output = forward(*args, **kwargs)
                engine.end(cache_in(output))
                return output

        self.changes.replace(base, "forward", around)

    def _wrap_model(self, model: nn.Module) -> None:
        """What says where prompts end. The model's forward and not a hook: PEFT calls it without hooks."""
        forward, ends, lock = method_of(model, "forward"), self.engine.prompt_ends, self._lock

        @functools.wraps(forward)
        def with_labels(*args, **kwargs):
            with alone(lock), ends.at(kwargs.get("labels")):
                return forward(*args, **kwargs)

        if "labels" in inspect.signature(forward).parameters:
            self.changes.replace(model, "forward", with_labels)
        if not hasattr(model, "generate"):
            return
        generate = method_of(model, "generate")

        @functools.wraps(generate)
        def for_prompts(inputs=None, *args, **kwargs):
            ids = kwargs.get("input_ids", inputs) if kwargs.get("inputs_embeds") is None else None
            with alone(lock), ends.generating(None if ids is None else ids.shape[1]):
                return generate(inputs, *args, **kwargs)

        self.changes.replace(model, "generate", for_prompts)

    def _wrap_tower(self, base: nn.Module, modality: str) -> None:
        name = f"get_{modality}_features"
        features, engine, lock = method_of(base, name), self.engine, self._lock
        signature = inspect.signature(features)

        @functools.wraps(features)
        def captured(*args, **kwargs):
            if engine.paused:
                return features(*args, **kwargs)
            given = signature.bind_partial(*args, **kwargs).arguments
            arguments = {**{k: v for k, v in given.items() if k != "kwargs"}, **given.get("kwargs", {})}
            with alone(lock):
                return engine.tower.around(modality, arguments, lambda: features(*args, **kwargs))

        self.changes.replace(base, name, captured)

    def _wrap_placeholders(self, base: nn.Module) -> None:
        build, engine = method_of(base, "get_placeholder_mask"), self.engine

        @functools.wraps(build)
        def seen(*args, **kwargs):
            masks = build(*args, **kwargs)
            engine.seen_placeholders(masks if isinstance(masks, tuple) else (masks,))
            return masks

        self.changes.replace(base, "get_placeholder_mask", seen)

    def _weigh_keys(self) -> None:
        """Where keys stand for several tokens, or are reduced, attend for the decoder layers; one without transformers'
        attention interface (recurrent, or with code of its own) gets a mask, and cannot reduce its keys."""
        self.engine.arguments.weighs = set()
        reduces = self.method.reduces_keys or self.method.skips_layers or self.method.freezes
        for index in range(len(self.family.layers) if self.method.share or reduces else 0):
            try:
                undo = hook_attention(self.family.decoder_attention(index), attend=attend)
            except UnsupportedModel:
                if reduces:
                    raise
                continue
            self.engine.arguments.weighs.add(index)
            self.changes.undone_by(undo)

    def _merge_in_tower(self) -> None:
        """Where the method asks which tokens the tower merged, let it merge."""
        engine, changes, starts = self.engine, self.changes, tuple(self.engine.stage_at)
        if not any(isinstance(s, TowerGroups) for s in self.method.signals(0)):
            return

        def keeps(totals: list[int]) -> list[int]:
            return [k[0] for k in keeps_of(engine.method, engine.budget, starts, engine.depth, totals)]

        blocks = [
            block
            for modality in self.family.token_ids
            for block in MergingTower(self.family, modality, engine.tower, keeps).merging()
        ]
        for block in {block.block.module: block for block in blocks}.values():  # one tower may serve both modalities
            capture = changes.lend(block.capture_attention)
            changes.undone_by(hook_attention(block.block.attention, capture, block.block.weigh))
            changes.replace(block.block.module, "forward", unmasked(block))

    @contextmanager
    def unasked(self) -> Iterator[None]:
        """Forwards inside bring a picture and no question: every candidate of it stays in the cache."""
        with alone(self._lock):
            self.engine.unasked = True
            try:
                yield
            finally:
                self.engine.unasked = False

    def remove(self) -> None:
        """Undo every change, the latest first. Raises ``VTCError`` while another thread runs the model."""
        with alone(self._lock):
            self._remove()

    def _remove(self) -> None:
        self.model.__dict__.pop(ATTRIBUTE, None)
        self.changes.undo()
        self.model._modules.pop(LEARNED, None)
        forget_compiled()


@contextmanager
def alone(lock: Any) -> Iterator[None]:
    """One thread at a time: what is known of a forward stands on its model. Raises ``VTCError``."""
    if not lock.acquire(blocking=False):
        raise VTCError(
            "another thread runs this patched model right now, and would take this one's pictures for its own; let one "
            "thread at a time run it (a lock, a queue), or give each thread a model of its own"
        )
    try:
        yield
    finally:
        lock.release()


def _named(module: nn.Module, call: Callable[[dict[str, Any]], None]):
    """A forward pre-hook that hands on the call's arguments by name and changes nothing."""
    names = [n for n in inspect.signature(type(module).forward).parameters if n != "self"]

    def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        call({**dict(zip(names, args, strict=False)), **kwargs})

    return hook


def forget_compiled() -> None:
    """Drop compiled code: dynamo does not guard on hooks, so code compiled before would ignore the change."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
