"""Pre-norm transformer blocks in their two halves, so that tokens can merge between attention and MLP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Block:
    """One block of a tower, ``feed(attend(x, None))`` where nothing merges.

    attend: states ``[T, t, D]`` after ``attention`` and its residual, with ``bias [T, 1, 1, t]`` (or None) added to the
    logits (``[n, D]`` and ``[n]`` where the tower packs all it sees into one sequence); feed: states after the MLP and
    its residual.
    """

    module: nn.Module
    attention: nn.Module
    attend: Callable[..., Tensor]
    feed: Callable[[Tensor], Tensor]
    weigh: Callable[..., Any] | None = None  # in place of the attention function


def pre_norm(layer: Any) -> Block:
    """An encoder layer of transformers' CLIP and its like: norm, attention, residual, norm, MLP, residual."""

    def attend(x: Tensor, bias: Tensor | None, **kwargs: Any) -> Tensor:
        return x + layer.self_attn(hidden_states=layer.layer_norm1(x), attention_mask=bias, **kwargs)[0]

    def feed(x: Tensor) -> Tensor:
        return x + layer.mlp(layer.layer_norm2(x))

    return Block(layer, layer.self_attn, attend, feed)


def scaled(layer: Any) -> Block:
    """InternVL's: as ``pre_norm``, each half scaled before its residual."""

    def attend(x: Tensor, bias: Tensor | None) -> Tensor:
        return layer.lambda_1 * layer.attention(layer.layernorm_before(x), attention_mask=bias)[0] + x

    def feed(x: Tensor) -> Tensor:
        return layer.lambda_2 * layer.dropout(layer.mlp(layer.layernorm_after(x))) + x

    return Block(layer, layer.attention, attend, feed)


def packed(layer: Any) -> Block:
    """Qwen-VL's, of all pictures in one sequence; ``cu_seqlens`` says where the stretches end that attend to
    themselves. Their attention takes no mask, and calls the attention function once a stretch."""
    biases: list[Tensor] = []

    def attend(x: Tensor, bias: Tensor | None, cu_seqlens: Tensor, **kwargs: Any) -> Tensor:
        biases[:] = [] if bias is None else bias.split(cu_seqlens.diff().tolist())
        return x + layer.attn(layer.norm1(x), cu_seqlens=cu_seqlens, **kwargs)

    def weigh(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, run: Callable[..., Any], **kwargs: Any) -> Any:
        return run(q, k, v, biases.pop(0)[None, None, None] if biases else mask, **kwargs)

    def feed(x: Tensor) -> Tensor:
        return x + layer.mlp(layer.norm2(x))

    return Block(layer, layer.attn, attend, feed, weigh)


KNOWN = {  # encoder layers of transformers, in halves
    **dict.fromkeys(("CLIPEncoderLayer", "SiglipEncoderLayer", "JanusVisionEncoderLayer"), pre_norm),
    **dict.fromkeys(("Idefics3EncoderLayer", "SmolVLMEncoderLayer"), pre_norm),
    "InternVLVisionLayer": scaled,
    **dict.fromkeys(("Qwen2VLVisionBlock", "Qwen2_5_VLVisionBlock", "Glm4vVisionBlock"), packed),
    **dict.fromkeys(("Qwen3VLVisionBlock", "Qwen3VLMoeVisionBlock", "Qwen3_5VisionBlock"), packed),
    "Qwen3_5MoeVisionBlock": packed,
    "Glm4vMoeVisionBlock": packed,
}
