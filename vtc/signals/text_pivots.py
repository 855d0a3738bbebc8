"""The words whose keys are longest (DART's text pivots)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.kernels.gather import gather_rows
from vtc.signals import register
from vtc.signals.base import DecoderHook, Signal, View
from vtc.signals.key_norm import KeyNorm
from vtc.tokens import top


@register("text_pivots")
@dataclass(frozen=True)
class TextPivots(Signal):
    """``[I, count, D]``, a picture's and not its tokens': the states, at the stage's entry, of the text rows behind it
    that have the largest ``KeyNorm``, largest first; NaN where there are fewer."""

    asks: ClassVar[bool] = True
    per_picture: ClassVar[bool] = True

    count: int = 4

    def words(self) -> str:
        return "text states"

    def hook(self, stage: int) -> DecoderHook | None:
        return self.source.hook(stage)

    @property
    def source(self) -> KeyNorm:
        return KeyNorm()

    def read(self, view: View) -> Tensor:
        text, prompt, norms = view.text, view.tokens.prompt, self.source.of_rows(view)
        behind = text.row[prompt] > view.picture_end[:, None]
        behind = behind if text.valid is None else behind & text.valid[prompt]
        most = min(self.count, text.row.shape[1])
        chosen = top(norms.gather(1, text.place)[prompt], [most] * len(behind), behind)
        found = gather_rows(view.states[prompt], text.place[prompt].gather(1, chosen))
        found = found.masked_fill(~behind.gather(1, chosen)[..., None], torch.nan)
        return pad(found, (0, 0, 0, self.count - most), value=torch.nan)
