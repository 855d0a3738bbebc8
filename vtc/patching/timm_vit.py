"""ToMe on a plain ViT of timm: ``vtc.patch(vit, "tome", r=13)``, undone by ``vtc.unpatch(vit)``."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from threading import RLock
from typing import Any

from torch import Tensor, nn

from vtc.errors import UnsupportedModel, VTCError
from vtc.methods.base import Method
from vtc.methods.tome import ToMe
from vtc.models.inspection import unwrapped
from vtc.models.timm import blocks_of, hook_keys
from vtc.patching.changes import Changes
from vtc.patching.patch import Patch
from vtc.tokens import Budget
from vtc.towers.groups import Groups
from vtc.towers.merging import MergingBlock, Plan, at_most, towards


class VitPatch(Patch):
    """ToMe on one ViT: ``r`` tokens merge in each block or, without ``r``, until ``budget`` patches are left.

    ``tokens``: how many tokens, class and registers included, left each block of the last forward.
    """

    def __init__(self, model: nn.Module, method: Method, budget: Budget):
        if not isinstance(method, ToMe):
            raise UnsupportedModel(
                f"{type(unwrapped(model)).__name__} has no decoder whose vision tokens {method.name} could reduce; "
                'merge tokens inside it: vtc.patch(model, "tome", r=13)'
            )
        if method.rest:
            raise UnsupportedModel(f"rest={method.rest} are decoder layers, and this model has none; leave it out")
        self.model = unwrapped(model)
        self.method, self.budget = method, budget
        self.blocks = blocks_of(self.model)
        self.rates = method.rates(len(self.blocks))
        self.prefix: int = self.model.num_prefix_tokens
        self.tokens = [0] * len(self.blocks)
        self.changes, self._lock = Changes(), RLock()

    def set_budget(self, budget: int | float | str | Budget) -> None:
        self.budget = Budget.of(budget)

    def _make_changes(self) -> None:
        me = weakref.proxy(self)  # this owns what it lends
        for index, block in enumerate(self.blocks):
            merging = MergingBlock(
                block, index, self.prefix, lambda states: Plan(me.away), lambda *left: me.left(*left)
            )
            self.changes.undone_by(hook_keys(block.attention, self.changes.lend(keys_to(merging))))
            self.changes.replace(block.module, "forward", unmasked(merging))

    def away(self, index: int, groups: Groups) -> list[int]:
        """How many tokens of each picture merge in block ``index``."""
        if self.rates is not None:
            return at_most(self.rates[index], groups, self.prefix)
        goal = self.prefix + int(self.budget.tokens(groups.owner.shape[1] - self.prefix))
        return towards([goal] * len(groups.count), groups, self.prefix, len(self.blocks) - index)

    def left(self, index: int, groups: Groups) -> None:
        self.tokens[index] = groups.count[0]

    @property
    def engine(self) -> Any:  # type: ignore[override]
        raise VTCError(
            "a plain ViT has no decoder to report on; vtc.patch_of(model).tokens counts what left each block"
        )


def keys_to(merging: MergingBlock) -> Callable[..., None]:
    def hook(module: nn.Module, args: tuple, keys: Tensor) -> None:
        merging.capture(keys)

    return hook


def unmasked(merging: MergingBlock) -> Callable[..., Tensor]:
    """The forward of a timm block, without the masks it could take: they name tokens that may have merged."""

    def forward(x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if attn_mask is not None or is_causal:
            raise UnsupportedModel("tome merges the tokens an attention mask names; vtc.unpatch(model) to use a mask")
        return merging(x)

    return forward
