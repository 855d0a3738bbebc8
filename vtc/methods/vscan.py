"""VScan: local and global tokens of the tower with the rest merged in, and a second cut inside the decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.methods import register
from vtc.methods._grid_cells import need_grid
from vtc.methods._ranks import first, ranks_within
from vtc.methods._share import share
from vtc.methods.base import Method, Stage
from vtc.signals.base import Signal
from vtc.signals.text_attention import TextAttention
from vtc.signals.tower_attention import TowerAttention
from vtc.tokens import Reduction, VisionTokens, cut


@register("vscan")
@dataclass(frozen=True)
class VScan(Method):
    """At the decoder's input half of the kept tokens are local: in each window of ``window`` x ``window`` tokens the
    same number, of largest CLS attention in a shallow tower layer. The others are global, of largest CLS attention in
    the second last layer. Every dropped token joins the kept one of largest cosine, by mean. Before decoder layer
    ``layer`` a third stay, those that the prompt's last row attends to most there, mean over heads.

    VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models, arXiv 2505.22654. Departs from
    the paper: windows at the border may be smaller; local tokens that do not fill the windows alike are global ones
    (there, they are lost).
    """

    name: ClassVar[str] = "vscan"
    paper: ClassVar[str] = (
        "VScan: Rethinking Visual Token Reduction for Efficient Large Vision-Language Models, arXiv 2505.22654"
    )
    variants: ClassVar[str] = "where the tower has no CLS token: mean attention received from all its tokens"
    trains: ClassVar[bool] = True

    window: int = 6
    layer: int | float = 0.5

    def __post_init__(self) -> None:
        n = self.window
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"vscan: window={n!r} is not an int >= 1; the paper's is 6")
        super().__post_init__()
        if self.layer == 0:
            raise ValueError(
                f"vscan: layer={self.layer!r} is the decoder's input, where the first stage is; give an int from 1 or "
                "a fraction of depth in (0, 1), like 0.5"
            )

    def stages(self) -> tuple[Stage, ...]:
        return Stage(0), Stage(self.layer, factor=1 / 3)

    def signals(self, stage: int) -> tuple[Signal, ...]:
        return (TextAttention("next"),) if stage else (TowerAttention(5 / 24), TowerAttention(-2))

    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        if stage:
            return Reduction.top(signals[TextAttention("next")], keep, tokens)
        shallow, deep = (signals[s] for s in self.signals(stage))
        window = windows(tokens, self.window)
        of_window = (torch.tensor(keep, device=window.device) // 2 // distinct(window, tokens))[:, None]
        local = ranks_within(window, shallow, tokens) < of_window
        return share(tokens, Reduction.keep(cut(first(local, deep, tokens), keep), tokens))


def windows(tokens: VisionTokens, side: int) -> Tensor:
    """``[I, N]``: a number for the window of each token, a square of ``side`` tokens of one frame."""
    need_grid("vscan", tokens)
    t, y, x = (tokens.grid.where(tokens.valid[..., None], 0) // torch.tensor([1, side, side])).unbind(2)
    return (t * (y.max() + 1) + y) * (x.max() + 1) + x


def distinct(group: Tensor, tokens: VisionTokens) -> Tensor:
    """``[I]``: how many different groups the tokens of each picture belong to, at least 1."""
    ordered = group.where(tokens.valid, -1).sort(dim=1).values
    starts = (ordered[:, 1:] != ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    return (starts.sum(1) + (ordered[:, 0] >= 0)).clamp(min=1)
