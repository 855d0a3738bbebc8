"""Pre-norm transformer blocks in their two halves, so that tokens can merge between attention and MLP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

PRE_NORM = ("CLIPEncoderLayer", "SiglipEncoderLayer", "JanusVisionEncoderLayer")


@dataclass(frozen=True)
class Block:
    """One block of a tower, ``feed(attend(x, None))`` where nothing merges.

    attend: states ``[T, t, D]`` after ``attention`` and its residual, with ``bias [T, 1, 1, t]`` (or None) added to the
    logits; feed: states after the MLP and its residual.
    """

    module: nn.Module
    attention: nn.Module
    attend: Callable[..., Tensor]
    feed: Callable[[Tensor], Tensor]


def pre_norm(layer: Any) -> Block:
    """An encoder layer of transformers' CLIP and its like: norm, attention, residual, norm, MLP, residual."""

    def attend(x: Tensor, bias: Tensor | None, **kwargs: Any) -> Tensor:
        return x + layer.self_attn(hidden_states=layer.layer_norm1(x), attention_mask=bias, **kwargs)[0]

    def feed(x: Tensor) -> Tensor:
        return x + layer.mlp(layer.layer_norm2(x))

    return Block(layer, layer.self_attn, attend, feed)
