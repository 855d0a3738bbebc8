"""Perceiver: learned latents at diverse tokens read the whole picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vtc.errors import BudgetError, VTCError
from vtc.kernels.greedy_diverse import greedy_diverse
from vtc.methods import register
from vtc.methods._grid_cells import need_grid
from vtc.methods._resampler import HEAD, Resampler
from vtc.methods.adaptive import Adaptive
from vtc.signals.base import Signal
from vtc.tokens import Reduction, VisionTokens, cut

WIDEST = 1024  # channels of the resampler where none are asked for


@register("perceiver")
@dataclass(frozen=True)
class Perceiver(Adaptive):
    """Resampler with learned queries, trained with the model's own loss. Untrained it is ``adaptive``, exactly.

    Latent k stands at the k-th token of the greedy max-min order (as DivPrune) and starts from that token's value, the
    mean of the tokens that join it (``share``), plus a learned vector of its own. ``depth`` blocks let the latents
    attend to [tokens; latents], biased to their neighbourhood; what they find is added to the value. Any number of
    latents up to ``latents`` may be used, and fewer are a prefix of more: train with ``vtc.training.elastic``.
    ``latents`` is the most tokens the first cut may leave, ``width`` the resampler's channels (None: the decoder's, at
    most 1,024). ``layer``, ``candidates`` and ``running`` are those of ``adaptive``: where latents stop, how many times
    the budget they are, which part of them goes on (None: the question chooses nothing, and all run to the end).

    After Flamingo (arXiv 2204.14198) and the Matryoshka Query Transformer (arXiv 2405.19315). Departs from both:
    latents start from tokens of the picture and not from noise, stand at their rows, and see nearer tokens first.
    """

    name: ClassVar[str] = "perceiver"
    paper: ClassVar[str] = (
        "Flamingo: a Visual Language Model for Few-Shot Learning, arXiv 2204.14198; "
        "Matryoshka Query Transformer for Large Vision-Language Models, arXiv 2405.19315"
    )
    trains: ClassVar[bool] = True
    gridded: ClassVar[bool] = True
    learns: ClassVar[bool] = True

    layer: int | float | None = None
    latents: int = 256
    depth: int = 2
    width: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for option, value in (("latents", self.latents), ("depth", self.depth)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"perceiver: {option}={value!r} is not an int >= 1; give one, like 64")
        width = self.width
        if width is not None and (isinstance(width, bool) or not isinstance(width, int) or width < 1 or width % HEAD):
            raise ValueError(f"perceiver: width={width!r} is not a multiple of {HEAD}; give one, like {4 * HEAD}")

    def build(self, model: nn.Module) -> nn.Module:
        config: Any = model.config
        channels = config.get_text_config().hidden_size
        width = self.width or max(HEAD, min(channels, WIDEST) // HEAD * HEAD)
        return Resampler(channels, self.latents, self.depth, width)

    @torch.no_grad()
    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        if stage:  # which latents go on where the others stop
            return super().reduce(stage, tokens, signals, keep)
        if self.module is None:
            raise VTCError("perceiver has no parameters without a model; use it through vtc.patch(model, 'perceiver')")
        if max(keep) > self.latents:
            raise BudgetError(
                f"a picture would keep {max(keep)} tokens at the decoder's input and this perceiver has {self.latents} "
                f"latents; lower the budget to at most {self.latents} there, or train one with latents={max(keep)}"
            )
        need_grid(self.name, tokens)
        order = cut(greedy_diverse(tokens.features, max(keep), "maxmin", tokens.valid), keep)
        kept = Reduction.keep(order, tokens)
        rank = order.masked_fill(order < 0, tokens.row.shape[1]).argsort(dim=1)
        refine = partial(self.module, valid=tokens.valid, grid=tokens.grid, anchor=kept.anchor, rank=rank)
        return Reduction(kept.slot, kept.anchor, refine=refine)
