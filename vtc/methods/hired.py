"""HiRED: a budget for every tile of a picture, from the attention its part of the whole picture gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vtc.budget.spend import EQUAL
from vtc.methods import register, registry
from vtc.methods._grid_cells import need_grid
from vtc.methods._ranks import first, portion, ranks_within
from vtc.methods._tiles import reduce_tiles
from vtc.methods.base import Method
from vtc.signals.base import Signal
from vtc.signals.tower_attention import TowerAttention
from vtc.signals.tower_groups import TowerGroups
from vtc.tokens import Reduction, VisionTokens, cut


@register("hired")
@dataclass(frozen=True)
class HiRED(Method):
    """For pictures seen whole and in tiles. The whole one gets the share ``alpha`` of the kept tokens; of its tokens,
    the share 1 - alpha of largest CLS attention in the tower's first layer is marked, its reading order is cut into as
    many runs as there are tiles, and each tile gets of the rest by the marks in its run. Inside a tile the tokens of
    largest CLS attention in the second last layer are kept; what a tile can not use goes to the best tokens anywhere.

    ``whole``: whether the whole picture comes before its tiles (LLaVA-NeXT) or after them (InternVL, Idefics3). Where
    a family sews tiles into one grid (LLaVA-NeXT's here), this is one tile; a picture in one piece is only its whole,
    and a video's whole is its first frame.

    ``select``: the method, or its name, that chooses inside the tiles in place of that attention. It sees each tile as
    a picture, with as many tokens to keep as HiRED itself keeps of it. One cut at the decoder's input, any method that
    a still picture in one piece has a use for.

    HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language Models, arXiv
    2408.10945. Departs from the paper: no token of the budget is lost to floors. Runs of the reading order stand for
    tiles, as in its code; 2-D tiles would be other tokens.
    """

    name: ClassVar[str] = "hired"
    paper: ClassVar[str] = (
        "HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language Models, "
        "arXiv 2408.10945"
    )
    variants: ClassVar[str] = "where the tower has no CLS token: mean attention received from all its tokens"

    alpha: float = 0.5
    whole: Literal["first", "last"] = "first"
    select: Method | str | None = None

    def __post_init__(self) -> None:
        a = self.alpha
        if isinstance(a, bool) or not isinstance(a, (int, float)) or not 0 <= a <= 1:
            raise ValueError(f"hired: alpha={a!r} is not a share in [0, 1]; the paper's is 0.5")
        if self.whole not in ("first", "last"):
            raise ValueError(f"hired: whole={self.whole!r} is not a place of the whole picture; give 'first' or 'last'")
        if self.select is not None:
            inner = selector(self.select)
            object.__setattr__(self, "select", inner)
            object.__setattr__(self, "share", self.share or inner.share)
        super().__post_init__()

    def signals(self, stage: int) -> tuple[Signal, ...]:
        inner = self.select.signals(0) if isinstance(self.select, Method) else ()
        return tuple(dict.fromkeys((TowerAttention(0), TowerAttention(-2), *inner)))

    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        early, late = (signals[s] for s in self.signals(stage)[:2])
        tile = tiles(tokens, self.whole)
        quota = quotas(early, tile, tokens, keep, self.alpha)
        inside = ranks_within(tile, late, tokens) < quota.gather(1, tile)
        kept = cut(first(inside, late, tokens), keep)
        if not isinstance(self.select, Method):
            return Reduction.keep(kept, tokens)
        quota = torch.zeros_like(quota).scatter_add_(1, tile.gather(1, kept.clamp(min=0)), (kept >= 0).long())
        return reduce_tiles(self.select, tile, quota, tokens, signals)


def selector(select: object) -> Method:
    """The option ``select`` as a method; raises ``ValueError`` where it cannot choose inside a tile."""
    method = registry[select]() if isinstance(select, str) else select
    if not isinstance(method, Method):
        raise ValueError(f"hired: select={select!r} is neither a method nor the name of one; give one like 'divprune'")
    stages = method.stages()
    reasons = {
        "reduces keys and keeps all rows": method.reduces_keys,
        f"cuts {len(stages)} times": len(stages) > 1,
        "cuts inside the decoder": stages[0].layer != 0,
        "gives quotas to tiles itself": isinstance(method, HiRED),
        "compares frames, and a tile is one": method.compares_frames,
        "merges in the tower, before the quotas are known": TowerGroups() in method.signals(0),
        "has parameters, which the patch would not own": method.learns,
        "has layers to rest in, and the tiles rest together": bool(method.rest),
        "has a spend of its own, and the tiles share one budget": method.spend != EQUAL,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ValueError(
                f"hired: select={method.name} {reason}; give a method that chooses once, at the decoder's input, such "
                "as divprune or visionzip"
            )
    return method


def tiles(tokens: VisionTokens, whole: str) -> Tensor:
    """``[I, N]``: the tile of each token; 0 is the whole picture (any tile in padding)."""
    need_grid("hired", tokens)
    t = tokens.grid[..., 0].where(tokens.valid, 0)
    return t if whole == "first" else (t + 1) % (t.amax(1, keepdim=True) + 1)


def quotas(early: Tensor, tile: Tensor, tokens: VisionTokens, keep: list[int], alpha: float) -> Tensor:
    """``[I, P]``: how many tokens each tile may keep; the floors may lose some."""
    many = int(tile.max()) + 1
    size = torch.zeros(len(keep), many, dtype=torch.int64, device=tile.device)
    size = size.scatter_add_(1, tile, tokens.valid.long())
    own = size[:, :1]  # of the whole picture
    in_whole = tokens.valid & (tile == 0)
    wanted, count = torch.tensor([keep, tokens.count], device=tile.device)[..., None]
    full = portion(wanted, alpha).minimum(own)
    rest = (wanted - full).minimum(count - own)

    marked = ranks_within((~in_whole).long(), early, tokens) < portion(own, 1 - alpha)
    run = (in_whole.cumsum(1) - 1) * (tile.amax(1, keepdim=True)) // own.clamp(min=1)
    marks = torch.zeros_like(size).scatter_add_(1, run.clamp(0, many - 1), (marked & in_whole).long())
    share = marks.float() / marks.sum(1, keepdim=True).clamp(min=1)
    parts = (share * rest).long()[:, : many - 1].minimum(size[:, 1:])
    return torch.cat([full, parts], dim=1)
