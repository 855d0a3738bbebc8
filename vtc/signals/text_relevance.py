"""How close each token is to the words of its prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vtc.kernels.gather import gather_rows
from vtc.kernels.match import unit
from vtc.signals import register
from vtc.signals.base import Signal, View


@register("text_relevance")
@dataclass(frozen=True)
class TextRelevance(Signal):
    """``[I, N]``: mean cosine of each token with the text of its own prompt (every real row that is no vision token),
    both as they stand at the stage's entry: at the decoder's input, projected features and input embeddings."""

    asks: ClassVar[bool] = True

    def words(self) -> str:
        return "text embeddings"

    def read(self, view: View) -> Tensor:
        text, prompt, states = view.text, view.tokens.prompt, view.states
        words = unit(gather_rows(states, text.place))
        mean = (words if text.valid is None else words.masked_fill(~text.valid[..., None], 0)).sum(dim=1)
        mean = mean / torch.tensor(text.count, device=states.device)[:, None].clamp(min=1)
        features = unit(gather_rows(states[prompt], view.position))
        return (features @ mean[prompt][..., None])[..., 0].masked_fill(~view.tokens.valid, 0.0)
