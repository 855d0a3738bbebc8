"""The public verbs: patch a model, undo it, ask what it did."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from vtc.engine.report import Report
from vtc.engine.stage_placement import can_freeze
from vtc.errors import VTCError
from vtc.methods import registry
from vtc.methods._spelling import build, make
from vtc.methods.base import Method
from vtc.models import family_of
from vtc.models.inspection import unwrapped
from vtc.models.timm import is_timm
from vtc.patching.patch import ATTRIBUTE, Patch
from vtc.tokens import Budget

One = str | Method | type[Method]
Given = One | list[One] | tuple[One, ...]
DEFAULT_METHOD, DEFAULT_BUDGET = "adaptive", 0.25


def default_method(model: nn.Module) -> tuple[str, dict[str, Any]]:
    """``adaptive``; its first cut alone where decoder layers are recurrent, or attend by code of their own. ``tome`` in
    plain ViTs."""
    if is_timm(unwrapped(model)):
        return "tome", {}
    return DEFAULT_METHOD, {} if can_freeze(family_of(model)) else {"layer": None}


def method_of(method: Given, options: dict[str, Any]) -> Method:
    """A method from its spelling (``"visionzip"``, ``"divprune+share"``, ``"fastv:layer=3"``), class or instance, or
    several from a list; options go to the constructor."""
    if isinstance(method, Method):
        if options:
            raise ValueError(f"options {sorted(options)} go with a method's name; this {method!r} is already built")
        return method
    if isinstance(method, (list, tuple)):
        return registry["combined"](methods=tuple(method_of(one, {}) for one in method), **options)
    if isinstance(method, str):
        return build(method, **options)
    if not (isinstance(method, type) and issubclass(method, Method)):
        raise ValueError(f"method {method!r} is neither a name, a vtc.methods class nor an instance of one")
    return make(method, method.name, options)


def patch_kind(model: nn.Module) -> type[Patch]:
    """What owns the changes to this model: plain ViTs of timm have blocks and no decoder."""
    if not is_timm(unwrapped(model)):
        return Patch
    from vtc.patching.timm_vit import VitPatch

    return VitPatch


def patch(
    model: nn.Module,
    method: Given | None = None,
    budget: int | float | str | Budget = DEFAULT_BUDGET,
    **options: Any,
) -> nn.Module:
    """Make ``model`` spend at most ``budget`` vision tokens a picture, averaged over its decoder layers. In place.

    method: a name (see ``vtc methods``) as the command line spells it, ``"divprune+share"``, ``"fastv:layer=3"``, or a
    class or instance from ``vtc.methods``; options go to its constructor. Of a list, one runs after the other under the
    one budget.
    budget: int >= 1 (tokens a picture) or float in (0, 1] (share of the picture's own tokens), or as typed: ``"25%"``.
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
    budget: int | float | str | Budget = DEFAULT_BUDGET,
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
def laid_aside(model: nn.Module) -> Iterator[nn.Module]:
    """The model without its patch for the length of a ``with`` block, which may patch it otherwise. A model without a
    patch is left alone."""
    outer = patch_of(model)
    unpatch(model)
    try:
        yield model
    finally:
        if outer is not None:
            unpatch(model)
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
def prompts_end_at(model: nn.Module, labels: Tensor) -> Iterator[nn.Module]:
    """In a training that computes its own loss: the prompts of the forwards inside end where ``labels [B, N]`` (-100 =
    not learned) begin, so that no method ranks tokens by the answer. A model given ``labels`` does so itself."""
    patch = patch_of(model)
    with nullcontext() if patch is None else patch.engine.prompt_ends.at(labels):
        yield model


def patch_of(model: nn.Module) -> Patch | None:
    """The patch on this model (or on the model inside a compile or PEFT wrapper), if any."""
    return unwrapped(model).__dict__.get(ATTRIBUTE)


def report(model: nn.Module) -> Report:
    """What the last prefill with pictures really did. Raises ``VTCError`` when the model is not patched."""
    found = patch_of(model)
    if found is None:
        raise VTCError(
            "this model is not patched, so nothing was counted; to count only, call "
            "vtc.patch(model, 'divprune', budget=1.0)"
        )
    return found.engine.report()
