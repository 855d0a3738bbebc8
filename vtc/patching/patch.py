"""What is changed on one model, and how each change is undone, in reverse order."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from vtc.engine.attention.attend import attend
from vtc.engine.capture.attention_hook import hook_attention
from vtc.engine.capture.install import install_hooks
from vtc.engine.forward import Engine
from vtc.engine.sites.tower_merging import MergingTower, unmasked
from vtc.engine.stages import keeps_of
from vtc.errors import UnsupportedModel, VTCError
from vtc.methods.base import Method
from vtc.models import family_of
from vtc.models.inspection import unwrapped
from vtc.signals.tower_groups import TowerGroups
from vtc.tokens import Budget

ATTRIBUTE = "_vtc_patch"
LEARNED = "vtc_learned"  # the submodule that holds what a method learns


class Patch:
    """One method at one budget on one model. Reachable as ``vtc.patch_of(model)``; undone by ``vtc.unpatch(model)``.

    What a method learns is a submodule of the model while the patch is on, ``model.vtc_learned``: parameters, state
    dict, ``.to`` and ``.train`` see it. ``patch_of(model).method.module`` is the same object.
    """

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
        self._undo: list[Callable[[], Any]] = []

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

    def set_budget(self, budget: int | float | Budget) -> None:
        """Spend another budget from the next forward on; what was learned stays. Raises ``BudgetError``."""
        self.budget = Budget.of(budget)
        self.engine.set_budget(self.budget)

    def __deepcopy__(self, memo: dict) -> Patch:
        raise VTCError("a patched model cannot be copied: vtc.unpatch it, copy, then vtc.patch the copy as well")

    def install(self) -> Patch:
        """Make every change; on an error none remains."""
        try:
            self._make_changes()
        except BaseException:
            self.remove()
            raise
        return self

    def _make_changes(self) -> None:
        family, engine = self.family, self.engine
        if self.method.module is not None:
            self._own(self.method.module)
        for modality in ("image", "video"):
            if hasattr(family.base, f"get_{modality}_features"):
                self._wrap_tower(family.base, modality)
        if hasattr(family.base, "get_placeholder_mask"):
            self._wrap_placeholders(family.base)
        for index, layer in enumerate(family.layers):
            self._wrap_layer(layer, index)
        self._wrap_labels()
        before, after = family.base.register_forward_pre_hook, family.base.register_forward_hook
        self._undo.append(before(_named(family.base, engine.begin), with_kwargs=True).remove)
        self._undo.append(after(lambda module, args, output: engine.end(_cache_in(output))).remove)
        text = family.decoder.register_forward_pre_hook(_named(family.decoder, engine.begin_text), with_kwargs=True)
        self._undo.append(text.remove)
        for undo in install_hooks(engine):
            self._undo.append(undo)
        self._weigh_keys()
        self._merge_in_tower()
        object.__setattr__(self.model, ATTRIBUTE, self)
        self._undo.append(lambda: self.model.__dict__.pop(ATTRIBUTE, None))
        forget_compiled()

    def _own(self, module: nn.Module) -> None:
        self.model.add_module(LEARNED, module)
        self._undo.append(lambda: self.model._modules.pop(LEARNED))

    @contextmanager
    def learned_aside(self) -> Iterator[None]:
        """The model without what was learned: it saves as the plain model it is."""
        module = self.model._modules.pop(LEARNED, None)
        try:
            yield
        finally:
            if module is not None:
                self.model.add_module(LEARNED, module)

    def _replace(self, module: nn.Module, name: str, value: Any) -> None:
        """Shadow a method of one module; undone by taking the shadow away (or putting an older one back)."""
        older = module.__dict__.get(name)
        object.__setattr__(module, name, value)

        def undo() -> None:
            if older is None:
                module.__dict__.pop(name, None)
            else:
                object.__setattr__(module, name, older)

        self._undo.append(undo)

    def _wrap_layer(self, layer: nn.Module, index: int) -> None:
        forward: Callable = layer.forward
        engine = self.engine

        # The layer's forward and not its hooks: theirs then see what passes between layers, whatever their order.
        @functools.wraps(forward)
        def on_rows(*args, **kwargs):
            return engine.layer(index, forward, args, kwargs)

        self._replace(layer, "forward", on_rows)

    def _wrap_labels(self) -> None:
        """The model's forward and not a hook: PEFT calls it without hooks."""
        forward: Callable = self.model.forward
        if "labels" not in inspect.signature(forward).parameters:
            return

        @functools.wraps(forward)
        def with_labels(*args, **kwargs):
            if kwargs.get("labels") is None:
                return forward(*args, **kwargs)
            with self.engine.prompts_end_at(kwargs["labels"]):
                return forward(*args, **kwargs)

        self._replace(self.model, "forward", with_labels)

    def _wrap_tower(self, base: nn.Module, modality: str) -> None:
        name = f"get_{modality}_features"
        features, engine = getattr(base, name), self.engine
        signature = inspect.signature(features)

        @functools.wraps(features)
        def captured(*args, **kwargs):
            if engine.paused:
                return features(*args, **kwargs)
            given = signature.bind_partial(*args, **kwargs).arguments
            arguments = {**{k: v for k, v in given.items() if k != "kwargs"}, **given.get("kwargs", {})}
            return engine.tower.around(modality, arguments, lambda: features(*args, **kwargs))

        self._replace(base, name, captured)

    def _wrap_placeholders(self, base: nn.Module) -> None:
        build: Callable = getattr(base, "get_placeholder_mask")  # noqa: B009
        engine = self.engine

        @functools.wraps(build)
        def seen(*args, **kwargs):
            masks = build(*args, **kwargs)
            engine.seen_placeholders(masks if isinstance(masks, tuple) else (masks,))
            return masks

        self._replace(base, "get_placeholder_mask", seen)

    def _weigh_keys(self) -> None:
        """Where keys stand for several tokens, or are reduced, attend for the decoder layers; one without transformers'
        attention interface (recurrent, or with code of its own) gets a mask, and cannot reduce its keys."""
        self.engine.arguments.weighs = set()
        reduces = self.method.reduces_keys or self.method.skips_layers
        for index in range(len(self.family.layers) if self.method.share or reduces else 0):
            try:
                undo = hook_attention(self.family.decoder_attention(index), attend=attend)
            except UnsupportedModel:
                if reduces:
                    raise
                continue
            self.engine.arguments.weighs.add(index)
            self._undo.append(undo)

    def _merge_in_tower(self) -> None:
        """Where the method asks which tokens the tower merged, let it merge."""
        engine, starts = self.engine, tuple(self.engine.stage_at)
        if not any(isinstance(s, TowerGroups) for s in self.method.signals(0)):
            return

        def keeps(totals: list[int]) -> list[int]:
            return [k[0] for k in keeps_of(self.method, self.budget, starts, engine.depth, totals)]

        blocks = [
            block
            for modality in self.family.token_ids
            for block in MergingTower(self.family, modality, engine.tower, keeps).blocks
        ]
        for block in {block.block.module: block for block in blocks}.values():  # one tower may serve both modalities
            self._undo.append(hook_attention(block.block.attention, block.capture_attention, block.block.weigh))
            self._replace(block.block.module, "forward", unmasked(block))

    def remove(self) -> None:
        """Undo every change, the latest first."""
        while self._undo:
            self._undo.pop()()
        forget_compiled()


def _named(module: nn.Module, call: Callable[[dict[str, Any]], None]):
    """A forward pre-hook that hands on the call's arguments by name and changes nothing."""
    names = [n for n in inspect.signature(type(module).forward).parameters if n != "self"]

    def hook(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        call({**dict(zip(names, args, strict=False)), **kwargs})

    return hook


def _cache_in(output: Any) -> Any:
    cache = getattr(output, "past_key_values", None)
    if cache is None and isinstance(output, tuple):
        cache = next((o for o in output if hasattr(o, "get_seq_length")), None)
    return cache


def forget_compiled() -> None:
    """Drop compiled code: dynamo does not guard on hooks, so code compiled before would ignore the change."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
