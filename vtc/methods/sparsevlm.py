"""SparseVLM: three cuts inside the decoder by what the prompt's raters attend to, the best of the rest recycled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.methods import register
from vtc.methods._density import closest, peaks
from vtc.methods._ranks import ranks
from vtc.methods.base import Method, Stage, depths
from vtc.signals.base import Signal
from vtc.signals.rater_attention import RaterAttention
from vtc.tokens import Reduction, VisionTokens, scatter_valid, top


@register("sparsevlm")
@dataclass(frozen=True)
class SparseVLM(Method):
    """Before each of ``layers`` (increasing; ints from 1, or fractions of depth) keep the tokens to which the raters,
    text rows that the pictures are close to, attended most in the layer before, mean over heads and raters. Of the
    dropped the best share ``recycle``, m tokens, go into m // 10 + 1 clusters around density peaks (with as many
    neighbours as clusters); each becomes one token, the mean, at its peak. Merged tokens count in the budget.

    Stage s keeps ``ratio ** (s + 1)`` of the tokens, with the one ratio that meets the budget.

    SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference, arXiv 2410.04417. Departs from
    the paper: the budget says how many stay (there, lists by hand for three budgets, and merged tokens come on top);
    positions stay the original ones (there, the first of the shorter sequence); a merged token weighs for all it stands
    for when it is merged again (there, for one); of equally dense tokens the first is the denser (there, by noise);
    several pictures of a prompt choose its raters together (there, one). Tokens whose states are not finite join none.
    """

    name: ClassVar[str] = "sparsevlm"
    paper: ClassVar[str] = (
        "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference, arXiv 2410.04417"
    )
    trains: ClassVar[bool] = True

    layers: tuple[int | float, ...] = (3 / 32, 7 / 32, 16 / 32)
    recycle: float = 0.3

    def __post_init__(self) -> None:
        part = self.recycle
        if isinstance(part, bool) or not isinstance(part, (int, float)) or not 0 < part <= 1:
            raise ValueError(f"sparsevlm: recycle={part!r} is not a share in (0, 1]; the paper's is 0.3")
        object.__setattr__(self, "layers", inside(self.name, self.layers))
        super().__post_init__()

    def stages(self) -> tuple[Stage, ...]:
        return tuple(Stage(layer, power) for power, layer in enumerate(self.layers, start=1))

    def signals(self, stage: int) -> tuple[Signal, ...]:
        return (RaterAttention(),)

    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        rank = ranks(signals[RaterAttention()].mean(dim=2), tokens)
        counts = [recycling(n, k, self.recycle) for n, k in zip(tokens.count, keep, strict=True)]
        kept, spent = torch.tensor([(k - c, m) for k, (c, m) in zip(keep, counts, strict=True)], device=rank.device).T
        best, recycled = rank < kept[:, None], tokens.valid & (rank < (kept + spent)[:, None])
        leader = leaders(tokens.features, recycled & ~best, [clusters for clusters, _ in counts])
        return Reduction.join(torch.arange(rank.shape[1], device=rank.device).where(best, leader), max(keep))


def inside(name: str, layers: object) -> tuple[int | float, ...]:
    """The option ``layers`` of a method whose cuts need a decoder layer before them."""
    checked = depths(name, layers)
    if checked[0] == 0:
        raise ValueError(
            f"{name}: layers={layers!r} has no decoder layer before its first to take attention from; give ints from 1 "
            "or fractions of depth in (0, 1)"
        )
    return checked


def recycling(count: int, keep: int, share: float) -> tuple[int, int]:
    """How many of ``keep`` slots are clusters, and how many of the ``count`` tokens go into them: the fewest clusters c
    that are right for the ``count - keep + c`` tokens which then are not kept as they are."""
    clusters = spent = 0
    while clusters < keep < count:
        dropped = count - keep + clusters
        spent = min(dropped, int(share * dropped) + 1)
        wanted = min(spent // 10 + 1, keep - 1)
        if wanted == clusters:
            break
        clusters = wanted
    return clusters, spent


def leaders(x: Tensor, recycled: Tensor, clusters: list[int]) -> Tensor:
    """``[I, N]``: for each token of ``recycled [I, N]`` the nearest of its picture's ``clusters[i]`` density peaks in
    ``x [I, N, D]`` (a peak: itself); -1 for the others, and for what is not finite."""
    group = torch.zeros_like(recycled, dtype=torch.long).masked_fill(~(recycled & x.isfinite().all(dim=2)), -1)
    near = torch.tensor(clusters, device=x.device).clamp(min=1)[:, None]
    score = peaks(x, group, near, most=max(1, *clusters)).masked_fill(group < 0, torch.nan)
    chosen = top(score, clusters, recycled)
    peak = scatter_valid(torch.zeros_like(recycled), chosen, torch.ones_like(chosen))
    return torch.arange(x.shape[1], device=x.device).where(peak, closest(x, group, group.where(peak, -1)))
