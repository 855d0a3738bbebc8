"""Several methods one after the other, under one budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor, nn

from vtc.budget.spend import EQUAL
from vtc.methods import register
from vtc.methods.base import Method, Stage
from vtc.methods.divprune import DivPrune
from vtc.methods.fastv import FastV
from vtc.signals.base import Signal
from vtc.tokens import Reduction, VisionTokens


@register("combined")
@dataclass(frozen=True)
class Combined(Method):
    """``methods`` in order of depth, each on what the one before left: ``vtc.patch(model, ["visionzip", "fastv"])``.

    One budget for all: every method shrinks what reaches it by the same ratio, so stage by stage the powers of that
    ratio add up. ``share`` is on where one of them shares.
    """

    name: ClassVar[str] = "combined"
    paper: ClassVar[str] = "any methods of this table"

    methods: tuple[Method, ...] = (DivPrune(), FastV())

    def __post_init__(self) -> None:
        given = self.methods
        if not isinstance(given, (tuple, list)) or not given or not all(isinstance(m, Method) for m in given):
            raise ValueError(f"combined: methods={given!r} are not methods; give them built, in order of depth")
        keys = [m.name for m in given if m.reduces_keys]
        if keys:
            raise ValueError(
                f"combined: {keys[0]} reduces keys and keeps all rows, the others drop rows; use it alone, or combine "
                "methods such as divprune and fastv"
            )
        skips = [m.name for m in given if m.skips_layers]
        if skips:
            raise ValueError(f"combined: the tokens {skips[0]} lets skip a layer come back in the next; use it alone")
        if any(m.freezes for m in given[:-1]):
            raise ValueError(
                "combined: the tokens of a method that freezes them can be cut no more; let it be the last"
            )
        if any(m.spend != EQUAL for m in given):
            raise ValueError("combined: its methods have one budget, so give spend to all of them together, not to one")
        object.__setattr__(self, "methods", tuple(given))
        object.__setattr__(self, "share", self.share or any(m.share for m in given))
        object.__setattr__(self, "rest", tuple(sorted(set(self.rest).union(*(m.rest for m in given)))))
        object.__setattr__(self, "learns", any(m.learns for m in given))
        super().__post_init__()

    def build(self, model: nn.Module) -> nn.Module | None:
        built = {str(n): method.build(model) for n, method in enumerate(self.methods)}
        learned = {n: module for n, module in built.items() if module is not None}
        return nn.ModuleDict(learned) if learned else None

    def bound(self, module: nn.Module | None) -> Self:
        parts = dict(module.named_children()) if module is not None else {}
        methods = tuple(method.bound(parts.get(str(n))) for n, method in enumerate(self.methods))
        out = super().bound(module)
        object.__setattr__(out, "methods", methods)
        return out

    def _parts(self) -> list[tuple[Method, int, Stage]]:
        """(method, its own stage, that stage with powers and factors counted from the picture) for every stage."""
        parts: list[tuple[Method, int, Stage]] = []
        for method in self.methods:
            power, factor = (parts[-1][2].power, parts[-1][2].factor) if parts else (0, 1.0)
            for n, stage in enumerate(method.stages()):
                parts.append((method, n, replace(stage, power=power + stage.power, factor=factor * stage.factor)))
        return parts

    def stages(self) -> tuple[Stage, ...]:
        return tuple(stage for _, _, stage in self._parts())

    def signals(self, stage: int) -> tuple[Signal, ...]:
        method, own, _ = self._parts()[stage]
        return method.signals(own)

    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        method, own, _ = self._parts()[stage]
        return method.reduce(own, tokens, signals, keep)
