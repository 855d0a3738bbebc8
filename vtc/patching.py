"""The public verbs. A ``Patch`` owns every change made to one model and undoes each, in reverse order."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from vtc.attend import attend
from vtc.engine import Engine
from vtc.errors import UnsupportedModel, VTCError
from vtc.methods import registry
from vtc.methods.base import Method
from vtc.models import family_of
from vtc.models.inspection import unwrapped
from vtc.models.timm import is_timm
from vtc.reporting import Report
from vtc.signals import KeyNorm, RaterAttention, TextAttention, TextPivots, TowerAttention, TowerGroups, TowerKeys
from vtc.stages import keeps_of
from vtc.taps import Mask, tap
from vtc.tokens import Budget
from vtc.tower import MergingTower, unmasked

ATTRIBUTE = "_vtc_patch"
LEARNED = "vtc_learned"  # the submodule that holds what a method learns
One = str | Method | type[Method]
Given = One | list[One] | tuple[One, ...]
DEFAULT_METHOD, DEFAULT_BUDGET = "adaptive", 0.25


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
        older = patch_of(self.model)
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
        self._tap_signals()
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
            with asking(self.model, kwargs["labels"]):
                return forward(*args, **kwargs)

        self._replace(self.model, "forward", with_labels)

    def _wrap_tower(self, base: nn.Module, modality: str) -> None:
        name = f"get_{modality}_features"
        features, engine = getattr(base, name), self.engine
        signature = inspect.signature(features)

        @functools.wraps(features)
        def heard(*args, **kwargs):
            if engine.paused:
                return features(*args, **kwargs)
            given = signature.bind_partial(*args, **kwargs).arguments
            arguments = {**{k: v for k, v in given.items() if k != "kwargs"}, **given.get("kwargs", {})}
            return engine.listener.tower(modality, arguments, lambda: features(*args, **kwargs))

        self._replace(base, name, heard)

    def _wrap_placeholders(self, base: nn.Module) -> None:
        build: Callable = getattr(base, "get_placeholder_mask")  # noqa: B009
        engine = self.engine

        @functools.wraps(build)
        def seen(*args, **kwargs):
            masks = build(*args, **kwargs)
            engine.seen_placeholders(masks if isinstance(masks, tuple) else (masks,))
            return masks

        self._replace(base, "get_placeholder_mask", seen)

    def _tap_signals(self) -> None:
        engine, family, ears = self.engine, self.family, self.engine.listener
        tower, decoder, raters, keys = set(), set(), set(), set()
        for layer, stage in engine.stage_at.items():
            for signal in self.method.signals(stage):
                if isinstance(signal, (TowerAttention, TowerKeys)):
                    tower.add(signal)
                elif isinstance(signal, TextAttention) and (engine.keys or engine.router):
                    decoder |= set(range(layer - (signal.of == "previous"), engine.depth))
                elif isinstance(signal, TextAttention):
                    decoder.add(layer - 1 if signal.of == "previous" else layer)
                elif isinstance(signal, RaterAttention):
                    raters.add((layer - 1, signal))
                elif isinstance(signal, (KeyNorm, TextPivots)) and layer > 0:
                    keys.add(layer - 1)
        for signal in sorted(tower, key=repr):
            towers = [family.tower_attention(signal.layer, modality) for modality in family.token_ids]
            for module in dict.fromkeys(towers):
                self._undo.append(tap(module, partial(ears.hear_tower, signal)))
        for layer in sorted(decoder):
            module = family.decoder_attention(layer)
            self._undo.append(tap(module, partial(self._hear_decoder, layer)))
        for layer, rated in sorted(raters, key=repr):
            self._undo.append(tap(family.decoder_attention(layer), partial(self._hear_raters, layer, rated)))
        for layer in sorted(keys):
            self._undo.append(tap(family.decoder_attention(layer), partial(self._hear_keys, layer)))

    def _hear_raters(self, layer: int, signal: RaterAttention, q: Tensor, k: Tensor, mask: Mask, scale: float) -> None:
        self.engine.listener.hear_raters(self.engine.current, layer, signal, q, k, mask, scale)

    def _hear_keys(self, layer: int, q: Tensor, k: Tensor, mask: Mask, scale: float) -> None:
        self.engine.listener.hear_keys(self.engine.current, layer, k, q.shape[2])

    def _hear_decoder(self, layer: int, q: Tensor, k: Tensor, mask: Mask, scale: float) -> None:
        self.engine.listener.hear_decoder(self.engine.current, layer, q, k, mask, scale)

    def _weigh_keys(self) -> None:
        """Where keys stand for several tokens, or are reduced, attend for the decoder layers; one without transformers'
        attention interface (recurrent, or with code of its own) gets a mask, and cannot reduce its keys."""
        self.engine.weighs = set()
        reduces = self.method.reduces_keys or self.method.skips_layers
        for index in range(len(self.family.layers) if self.method.share or reduces else 0):
            try:
                undo = tap(self.family.decoder_attention(index), attend=attend)
            except UnsupportedModel:
                if reduces:
                    raise
                continue
            self.engine.weighs.add(index)
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
            for block in MergingTower(self.family, modality, engine.listener, keeps).blocks
        ]
        for block in {block.block.module: block for block in blocks}.values():  # one tower may serve both modalities
            self._undo.append(tap(block.block.attention, block.hear_attention, block.block.weigh))
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
        import torch

        torch._dynamo.reset()


def default_method(model: nn.Module) -> tuple[str, dict[str, Any]]:
    """``adaptive`` with its first cut alone: where a second one belongs differs from model to model, and a wrong place
    costs more than it brings (docs/adaptive.md); ``vtc.calibrate`` finds it. ``tome`` in plain ViTs."""
    return ("tome", {}) if is_timm(unwrapped(model)) else (DEFAULT_METHOD, {"layer": None})


def method_of(method: Given, options: dict[str, Any]) -> Method:
    """A method from its name (``"visionzip"``), class or instance, or several from a list; options go to the
    constructor."""
    if isinstance(method, Method):
        if options:
            raise ValueError(f"options {sorted(options)} go with a method's name; this {method!r} is already built")
        return method
    if isinstance(method, (list, tuple)):
        return registry["combined"](methods=tuple(method_of(one, {}) for one in method), **options)
    kind = registry[method] if isinstance(method, str) else method
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise ValueError(f"method {method!r} is neither a name, a vtc.methods class nor an instance of one")
    known = list(getattr(kind, "__dataclass_fields__", {}))
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"{kind.name} has no option {', '.join(unknown)}; it has {', '.join(known)}")
    return kind(**options)


def patch_kind(model: nn.Module) -> type[Patch]:
    """What owns the changes to this model: plain ViTs of timm have blocks and no decoder."""
    if not is_timm(unwrapped(model)):
        return Patch
    from vtc.vit import VitPatch

    return VitPatch


def patch(
    model: nn.Module,
    method: Given | None = None,
    budget: int | float | Budget = DEFAULT_BUDGET,
    **options: Any,
) -> nn.Module:
    """Make ``model`` spend at most ``budget`` vision tokens a picture, averaged over its decoder layers. In place.

    method: a name (see ``vtc methods``), a class or instance from ``vtc.methods``; options go to its constructor. Of a
    list, one runs after the other under the one budget.
    budget: int >= 1 (tokens a picture) or float in (0, 1] (share of the picture's own tokens).
    Patching again replaces the patch; an equal learned method keeps what it has learned. Returns the same object.
    Raises ``UnsupportedModel``, ``BudgetError``, ``UnknownName``; the model is unchanged after an error.
    """
    kind = patch_kind(model)
    if method is None:
        method, defaults = default_method(model)
        options = {**defaults, **options}
    chosen, limit = method_of(method, options), Budget.of(budget)
    new, older = kind(model, chosen, limit), patch_of(model)
    unpatch(model)
    try:
        new.install()
    except BaseException:
        if older is not None:
            older.install()
        raise
    return model


def unpatch(model: nn.Module) -> nn.Module:
    """Undo the patch: the model is bit-identical to before. A model without a patch is left alone."""
    patch = patch_of(model)
    if patch is not None:
        patch.remove()
    return model


@contextmanager
def patched(
    model: nn.Module,
    method: Given | None = None,
    budget: int | float | Budget = DEFAULT_BUDGET,
    **options: Any,
) -> Iterator[nn.Module]:
    """``patch`` for the length of a ``with`` block; on exit an outer patch is restored."""
    outer = patch_of(model)
    patch(model, method, budget, **options)
    try:
        yield model
    finally:
        unpatch(model)
        if outer is not None:
            outer.install()


@contextmanager
def paused(model: nn.Module) -> Iterator[nn.Module]:
    """The whole model for the length of a ``with`` block, its patch left on: a model can so teach itself. A prompt that
    begins inside ends inside. A model without a patch is left alone."""
    patch = patch_of(model)
    before = patch is not None and patch.engine.paused
    try:
        if patch is not None:
            patch.engine.paused = True
        yield model
    finally:
        if patch is not None:
            patch.engine.paused = before


@contextmanager
def asking(model: nn.Module, labels: Tensor) -> Iterator[nn.Module]:
    """In a training that computes its own loss: the prompts of the forwards inside end where ``labels [B, N]`` (-100 =
    not learned) begin, so that no method ranks tokens by the answer. A model given ``labels`` does so itself."""
    patch = patch_of(model)
    before = None if patch is None else patch.engine.labels
    try:
        if patch is not None:
            patch.engine.labels = labels
        yield model
    finally:
        if patch is not None:
            patch.engine.labels = before


def patch_of(model: nn.Module) -> Patch | None:
    """The patch on this model (or on the model inside a compile or PEFT wrapper), if any."""
    return unwrapped(model).__dict__.get(ATTRIBUTE)


def report(model: nn.Module) -> Report:
    """What the last prefill with pictures really did. Raises ``VTCError`` when the model is not patched."""
    found = patch_of(model)
    if found is None:
        raise VTCError(
            "this model is not patched, so nothing was counted; call vtc.patch(model, budget=1.0) to count only"
        )
    return found.engine.report()
