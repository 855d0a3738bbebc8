"""PruMerge: the tokens that stand out in the tower's attention, their neighbours added, and one for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.kernels.gather import gather_rows
from vtc.kernels.match import BLOCK, unit
from vtc.methods import register
from vtc.methods.base import Method
from vtc.signals.base import Signal
from vtc.signals.tower_attention import TowerAttention
from vtc.signals.tower_keys import TowerKeys
from vtc.tokens import Reduction, VisionTokens, cut, scatter_valid, top


@register("prumerge")
@dataclass(frozen=True)
class PruMerge(Method):
    """With a the CLS attention of the tower's last layer (all heads joined into one): keep the tokens of largest a. To
    each add the sum of a_j x_j over its ``neighbours`` most alike tokens j (cosine of keys; kept ones too), not
    normalised. Of two or more slots one is the sum of a_j x_j over the dropped tokens; it stands at the best of them.

    LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models, arXiv 2403.15388. Departs from the
    paper: the budget says how many are kept (there, the outliers of a: above Q3 + 1.5 IQR); tokens keep their order
    (there, by a); features are the projected ones. A token with a NaN adds nothing to any.
    """

    name: ClassVar[str] = "prumerge"
    paper: ClassVar[str] = (
        "LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models, arXiv 2403.15388"
    )
    variants: ClassVar[str] = "where the tower has no CLS token: mean attention received from all its tokens"
    trains: ClassVar[bool] = True

    neighbours: int = 32

    def __post_init__(self) -> None:
        n = self.neighbours
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise ValueError(f"{self.name}: neighbours={n!r} is not an int >= 0; the paper's is 32")
        super().__post_init__()

    def signals(self, stage: int) -> tuple[Signal, ...]:
        return TowerAttention(-1, joined=True), TowerKeys(-1, joined=True)

    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        attention, keys = (signals[s] for s in self.signals(stage))
        order = self.order(attention, tokens, keep)
        shrinks = [k < n for k, n in zip(keep, tokens.count, strict=True)]
        gathers = [k > 1 and s for k, s in zip(keep, shrinks, strict=True)]
        wanted, shrinks, gathers = torch.tensor([keep, shrinks, gathers], device=order.device)[..., None]
        rest = order.gather(1, wanted.clamp(min=1) - 1).where(gathers > 0, -1)  # the last slot takes what is dropped

        index = torch.arange(tokens.row.shape[1], device=order.device).expand_as(tokens.row)
        chosen = cut(order, keep)
        heads = scatter_valid(torch.zeros_like(tokens.valid), chosen, torch.ones_like(chosen))
        sound = tokens.valid & attention.isfinite()
        weight = attention.where(sound, 0).masked_fill(heads & (index != rest), 1)
        reduction = Reduction.join(index.where(heads, rest.where(sound, -1)), max(keep), weight)

        anchor = reduction.anchor
        near, used = nearest(keys, anchor.clamp(min=0), sound, min(self.neighbours, len(index[0])))
        used &= ((shrinks > 0) & (anchor >= 0) & (anchor != rest))[..., None]
        by = attention.gather(1, near.flatten(1)).view_as(near)
        slots = torch.arange(anchor.shape[1], device=anchor.device).expand_as(anchor)[..., None].where(used, -1)
        reduction.also = tuple(zip(*(t.unbind(2) for t in (near, slots, by)), strict=True))
        return reduction

    def order(self, attention: Tensor, tokens: VisionTokens, keep: list[int]) -> Tensor:
        """``[I, N]``: tokens from the first to be kept to the last, -1 padded."""
        return top(attention, tokens.count, tokens.valid)


@torch.no_grad()
def nearest(keys: Tensor, of: Tensor, allowed: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """``[I, K, count]``: the allowed tokens of largest cosine of ``keys [I, N, d]`` to each token ``of [I, K]``, itself
    left out, and which of these there are. Ties go to the lower index."""
    direction = unit(keys)
    index = torch.arange(keys.shape[1], device=keys.device)
    rows = max(1, BLOCK // max(1, keys.shape[0] * keys.shape[1]))
    near, used = [of.new_empty(*of.shape, count)[:, :0]], [allowed.new_empty(*of.shape, count)[:, :0]]
    for start in range(0, of.shape[1], rows):
        one = of[:, start : start + rows]
        cosine = gather_rows(direction, one) @ direction.mT
        refused = ~allowed[:, None] | (index == one[..., None]) | cosine.isnan()
        best = cosine.masked_fill_(refused, -torch.inf).sort(dim=2, descending=True, stable=True)
        near.append(best.indices[..., :count])
        used.append(best.values[..., :count] > -torch.inf)
    return torch.cat(near, dim=1), torch.cat(used, dim=1)
