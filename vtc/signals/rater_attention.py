"""Attention from the words that a picture is close to (SparseVLM's raters), in one decoder layer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.kernels.float64 import in_float64
from vtc.kernels.gather import gather_rows
from vtc.kernels.received_attention import BLOCK, received_attention
from vtc.signals import register
from vtc.signals.base import DecoderCall, DecoderHook, Signal, View, on_tokens

LEAST = 0.1  # of ``gravity``: what is far is lifted tenfold at most


@register("rater_attention")
@dataclass(frozen=True)
class RaterAttention(Signal):
    """``[I, N, H]``: attention from the prompt's raters to each token in the decoder layer before the stage, as it ran,
    by head, mean over the raters.

    Raters are the text rows behind the prompt's pictures that get more than these rows' mean in softmax(V T^T), V and T
    being vision and text rows of the decoder's input (all of them where none gets more than another, and the prompt's
    last row where there are none). ``gravity``: the attention of each pair of rows is divided by the cosine that rotary
    positions give them at their distance, whatever they hold.
    """

    asks: ClassVar[bool] = True
    sees_input: ClassVar[bool] = True

    gravity: bool = False

    def words(self) -> str:
        return "rater attention (previous layer)"

    def hook(self, stage: int) -> DecoderHook:
        return DecoderHook(stage - 1)

    def at_input(self, view: View) -> Tensor:
        """``[B, R]``: the raters' rows in their prompts, -1 = none."""
        tokens, text = view.tokens, view.text
        batch, length = view.states.shape[:2]
        vision = torch.full((batch, length + 1), -1, device=view.states.device)  # padding lands in a column cut off
        row = tokens.row.where(tokens.valid, length)
        vision[tokens.prompt[:, None], row] = row
        vision = vision[:, :length]
        behind = text.row > vision.amax(dim=1, keepdim=True)
        behind = behind if text.valid is None else behind & text.valid
        last = view.last.where(~behind.any(dim=1), -1)
        return torch.cat([choose_raters(view.states.detach(), vision, text.row, behind), last[:, None]], dim=1)

    def capture(self, call: DecoderCall) -> Tensor:
        """``[B, n, H]``: attention from each prompt's raters to the n rows, mean over the raters."""
        batch, n, keys = call.q.shape[0], call.q.shape[2], call.k.shape[2]
        raters = call.at_input.to(call.q.device)
        place = torch.searchsorted(call.rows.contiguous(), raters).clamp(max=n - 1).where(raters >= 0, -1)
        wide = torch.float64 if call.q.dtype == torch.float64 else torch.float32
        pull = None
        if self.gravity:
            apart = torch.arange(call.length, device=call.q.device)
            pull = in_float64(partial(gravity, width=call.q.shape[3], dtype=wide), apart)
        share = (raters >= 0).sum(dim=1)[:, None, None].to(wide).reciprocal()
        received = torch.zeros((), device=call.q.device)
        step = max(1, BLOCK // (batch * keys))
        for row, at in zip(raters.split(step, dim=1), place.split(step, dim=1), strict=True):
            weight = share.expand(-1, at.shape[1], keys)
            if pull is not None:
                apart = (row.clamp(min=0)[..., None] - call.rows[:, None]).abs()
                weight = weight / pad(pull[apart], (keys - n, 0), value=1.0)
            bias = call.bias(at.clamp(min=0))
            received = received + received_attention(
                call.q, call.k, at, log_size=bias, scale=call.scale, weights=weight
            )
        return received[:, :, keys - n :].transpose(1, 2)

    def read(self, view: View) -> Tensor:
        return on_tokens(view.captured(self), view)


def choose_raters(states: Tensor, vision: Tensor, text: Tensor, behind: Tensor) -> Tensor:
    """``[B, T]``: the rows of ``text [B, T]``, among those that stand ``behind [B, T]`` the pictures, to which the rows
    ``vision [B, V]`` (-1 = none) of ``states [B, L, D]`` give more than the mean in softmax(V T^T); -1 for the others.
    Where none gets more than another: all that stand behind."""
    words = gather_rows(states, text)[:, None]
    weight = received_attention(states[:, None], words, vision, allowed=behind, scale=1.0)[:, 0]
    above = behind & (weight > weight.sum(dim=1, keepdim=True) / behind.sum(dim=1, keepdim=True))
    return text.where(above.where(above.any(dim=1, keepdim=True), behind), -1)


def gravity(distance: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """``[n]``: the cosine that rotary positions alone (base 10000, heads of ``width``) give two rows ``distance [n]``
    apart: the mean over the frequencies f of cos(distance f), at least ``LEAST``."""
    frequency = 10000 ** (-torch.arange(0, width, 2, device=distance.device, dtype=torch.float64) / width)
    return (distance[:, None] * frequency).cos().mean(dim=1).clamp(min=LEAST).to(dtype)
