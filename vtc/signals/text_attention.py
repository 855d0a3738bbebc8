"""Attention from the question to the picture, in one decoder layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from vtc.kernels.received_attention import received_attention
from vtc.signals import register
from vtc.signals.base import DecoderCall, DecoderHook, Signal, View, on_tokens


@register("text_attention")
@dataclass(frozen=True)
class TextAttention(Signal):
    """``[I, N]``: attention from the prompt's last row to each token, mean over heads (``by_head``: ``[I, N, H]``).
    Where labels are given, the prompt ends before the first one that is learned.

    ``of="previous"``: in the decoder layer before the stage, as it ran (FastV); ``of="next"``: in the layer the stage
    stands before, recomputed from the states at its entry (PyramidDrop).
    """

    asks: ClassVar[bool] = True

    of: Literal["previous", "next"] = "previous"
    by_head: bool = False

    def words(self) -> str:
        return f"text attention ({self.of} layer)"

    def hook(self, stage: int) -> DecoderHook:
        return DecoderHook(stage - (self.of == "previous"))

    @property
    def source(self) -> TextAttention:
        return TextAttention()  # one row's attention, whoever asks

    def capture(self, call: DecoderCall) -> Tensor:
        """``[B, H, n]``."""
        row = call.last[:, None]
        seen = received_attention(call.q, call.k, row, log_size=call.bias(row)[:, 0], scale=call.scale)
        return seen[..., call.k.shape[2] - call.q.shape[2] :]

    def read(self, view: View) -> Tensor:
        by_head = view.captured(self)
        return on_tokens(by_head.transpose(1, 2) if self.by_head else by_head.mean(dim=1), view)
