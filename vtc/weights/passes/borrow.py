"""Decoder layers that borrow the weights of others, with low-rank adapters (FlexiGPT, arXiv 2501.14713)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vtc.errors import WeightsError
from vtc.models import family_of
from vtc.patching.api import patch_of
from vtc.weights.calibration.block_walk import Walk
from vtc.weights.calibration.channel_statistics import influence_of
from vtc.weights.passes import register
from vtc.weights.passes._structure import Scope, StructuredPass
from vtc.weights.passes.base import check_flag, check_share
from vtc.weights.structure.edits import Edits
from vtc.weights.structure.sharing import BorrowedLinear, OutputNorm, borrow, donor, least_needed, linears_of, normalise
from vtc.weights.structure.sharing import unnormalise as undo_norm

Statistics = tuple[Tensor, Tensor]  # mean and deviation of each feature


@register("borrow")
@dataclass(frozen=True)
class Borrow(StructuredPass):
    """Rebuild the ``share`` of decoder layers of least Block Influence from the layers that stay, each from the one
    that differs least beyond adapters of ``rank``. norm: their outputs get the mean and deviation they had.

    It saves bytes, no FLOPs; lenders stay as they are under later passes. A token patch is lifted meanwhile. The
    adapters start as the best of their rank and can be trained (``vtc.weights.distill``).
    """

    share: float = 0.25
    rank: int = 8
    norm: bool = True
    name = "borrow"

    def __post_init__(self) -> None:
        check_share("share", self.share)
        check_flag("norm", self.norm)
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise WeightsError(f"rank must be a number from 1 on, not {self.rank!r}")

    def apply(self, model: nn.Module, scope: Scope, edits: Edits) -> dict[str, Any]:
        if scope.skip:
            raise WeightsError("skip names layers, and whole decoder layers borrow; leave skip or borrow out")
        patch = patch_of(model)
        if patch is not None:
            patch.remove()
        try:
            return self._borrow(model, Walk(model, scope.examples), scope, edits)
        finally:
            if patch is not None:
                patch.install()

    def _borrow(self, model: nn.Module, walk: Walk, scope: Scope, edits: Edits) -> dict[str, Any]:
        blocks = list(family_of(model).layers)
        for module in (m for block in blocks for m in block.modules()):
            if isinstance(module, BorrowedLinear):
                raise WeightsError("layers of this model borrow already; borrow once, with a larger share")
        influence = influence_of(walk, scope.buckets).tolist()
        pruned = least_needed(influence, round(self.share * len(blocks)))
        kept = {n: linears_of(block) for n, block in enumerate(blocks) if n not in pruned}
        plan = {n: donor(linears_of(blocks[n]), kept, self.rank) for n in pruned}
        wanted = statistics(walk, pruned) if self.norm else {}
        for n, lender in plan.items():
            borrow(blocks[n], blocks[lender], self.rank, edits.set)
            edits.resized += [m for m in blocks[n].modules() if isinstance(m, BorrowedLinear)]
        for n in wanted:
            got = statistics(walk, [n])[n]
            norm = OutputNorm.of(got, wanted[n], next(blocks[n].parameters()).dtype)
            normalise(blocks[n], norm.to(next(blocks[n].parameters()).device))
            edits.when_undone(partial(undo_norm, blocks[n]))
            edits.resized.append(blocks[n])
        return {
            "lenders": {str(n): lender for n, lender in plan.items()},
            "influence": [round(i, 6) for i in influence],
        }


@torch.no_grad()
def statistics(walk: Walk, blocks: Iterable[int]) -> dict[int, Statistics]:
    """Mean and deviation ``[D]`` float64 of what each of the ``blocks`` gives, padding left out."""
    found: dict[int, list[Any]] = {n: [0.0, 0.0, 0] for n in blocks}
    for example in range(len(walk.examples)):
        rows = walk.rows(example).flatten() > 0

        def capture(module: nn.Module, args: tuple, output: Any, sums: list[Any], rows: Tensor = rows) -> None:
            states = output[0] if isinstance(output, tuple) else output
            states = states.flatten(0, -2)[rows.to(states.device)].double()
            for k, each in enumerate((states.sum(0), states.square().sum(0), len(states))):
                sums[k] = sums[k] + each

        hooks = [
            walk.family.layers[n].register_forward_hook(
                lambda *given, sums=sums, capture=capture: capture(*given, sums)
            )
            for n, sums in found.items()
        ]
        try:
            walk.forward(example)
        finally:
            for hook in hooks:
                hook.remove()
    return {n: _moments(*sums) for n, sums in found.items()}


def _moments(total: Tensor, squares: Tensor, count: int) -> Statistics:
    mean = total / count
    return mean, (squares / count - mean.square()).clamp_min(0).sqrt()
