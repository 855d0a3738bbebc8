"""SparseVLM's raters, the text rows that pictures are close to, and what distance alone does to their attention."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.kernels.gather import gather_rows
from vtc.kernels.received_attention import received_attention

LEAST = 0.1  # of ``gravity``: what is far is lifted tenfold at most


def choose_raters(states: Tensor, vision: Tensor, text: Tensor, behind: Tensor) -> Tensor:
    """``[B, T]``: the rows of ``text [B, T]``, among those that stand ``behind [B, T]`` the pictures, to which the rows
    ``vision [B, V]`` (-1 = none) of ``states [B, L, D]`` give more than the mean in softmax(V T^T); -1 for the others.
    Where none gets more than another: all that stand behind."""
    words = gather_rows(states, text)[:, None]
    weight = received_attention(states[:, None], words, vision, allowed=behind, scale=1.0)[:, 0]
    above = behind & (weight > weight.sum(dim=1, keepdim=True) / behind.sum(dim=1, keepdim=True))
    return text.where(above.where(above.any(dim=1, keepdim=True), behind), -1)


def gravity(length: int, width: int, device: torch.device) -> Tensor:
    """``[length]``: the cosine that rotary positions alone (base 10000, heads of ``width``) give two rows 0, 1, 2, ...
    apart: the mean over the frequencies f of cos(distance f), at least ``LEAST``."""
    frequency = 10000 ** (-torch.arange(0, width, 2, device=device, dtype=torch.float64) / width)
    distance = torch.arange(length, device=device)[:, None]
    return (distance * frequency).cos().mean(dim=1).clamp(min=LEAST)
