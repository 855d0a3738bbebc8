"""How long the tokens' keys are, in one decoder layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.signals import register
from vtc.signals.base import DecoderCall, DecoderHook, Signal, View, on_tokens


@register("key_norm")
@dataclass(frozen=True)
class KeyNorm(Signal):
    """``[I, N]``: L1 norm of each token's key, over all heads, in the decoder layer before the stage, as it ran; at the
    decoder's input, where none has run, of its input embedding."""

    def words(self) -> str:
        return "key norms (previous layer)"

    def hook(self, stage: int) -> DecoderHook | None:
        return DecoderHook(stage - 1) if stage > 0 else None

    def capture(self, call: DecoderCall) -> Tensor:
        """``[B, n]``."""
        own = call.k[:, :, call.k.shape[2] - call.q.shape[2] :]
        return l1_norm(own.transpose(1, 2).flatten(2))

    def read(self, view: View) -> Tensor:
        return on_tokens(self.of_rows(view), view)

    def of_rows(self, view: View) -> Tensor:
        """``[B, n]``: of every row that enters the stage."""
        return l1_norm(view.states) if self.hook(view.layer) is None else view.captured(self)


def l1_norm(x: Tensor) -> Tensor:
    """Of ``x [..., d]``, in float32 (float64 stays)."""
    return x.abs().sum(dim=-1, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
