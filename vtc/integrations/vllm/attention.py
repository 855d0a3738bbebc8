"""Attention in which a key that stands for s tokens weighs s, whatever backend runs: log s lies in spare columns of the
keys, in the paged cache, so decoding, prefix hits, chunks and preemption need nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import get_current_vllm_config
from vllm.model_executor.layers.attention import Attention

PLAIN = ("auto", "float16", "bfloat16", "float32")
BACKENDS = ("CPU_ATTN", "FLASH_ATTN")  # others size their buffers by the model's heads and not by the layer's


class WeighedAttention(nn.Module):
    """In place of a decoder layer's ``Attention``, around one of wider heads: q' = [q, 1, 1, 0 ..], k' = [k, high, low,
    0 ..], v' = [v, 0 ..]; ``high + low`` is the log size over the scale, split so that half precision holds it."""

    def __init__(self, old: Any, log_size: Tensor):
        super().__init__()
        check(old)
        config = get_current_vllm_config()
        self.width, self.heads, self.key_heads, self.scale = (
            old.head_size,
            old.num_heads,
            old.num_kv_heads,
            old.impl.scale,
        )
        spare = range(-(-(self.width + 2) // 8) * 8, 513, 8)
        self.wide = next(n for n in spare if old.attn_backend.supports_head_size(n))
        del config.compilation_config.static_forward_context[old.layer_name]  # the new one takes its name over
        self.attn = Attention(
            self.heads,
            self.wide,
            self.scale,
            num_kv_heads=self.key_heads,
            cache_config=config.cache_config,
            quant_config=old.quant_config,
            per_layer_sliding_window=old.sliding_window,
            prefix=old.layer_name,
        )
        self.log_size = log_size  # one buffer for the whole model, written before each forward

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows, spare = q.shape[0], self.wide - self.width
        bias = (self.log_size[:rows] / self.scale)[:, None, None].expand(-1, self.key_heads, 1)
        high = bias.to(k.dtype)
        low = (bias - high.float()).to(k.dtype)
        q, k, v = (x.view(rows, -1, self.width) for x in (q, k, v))
        ones, none = q.new_ones(rows, self.heads, 2), k.new_zeros(rows, self.key_heads, spare)
        q = torch.cat([q, ones, q.new_zeros(rows, self.heads, spare - 2)], dim=-1)
        k = torch.cat([k, high, low, none[..., 2:]], dim=-1)
        v = torch.cat([v, none], dim=-1)
        out = self.attn(q.flatten(1), k.flatten(1), v.flatten(1), *args, **kwargs)
        return out.view(rows, self.heads, self.wide)[..., : self.width].flatten(1)


def check(old: Any) -> None:
    """Raises ``ValueError`` where sizes would be added wrongly, or not at all."""
    if getattr(old.impl, "logits_soft_cap", None):
        raise ValueError("share needs attention without a cap on its logits; serve this model without +share")
    for name in ("alibi_slopes", "sinks"):
        if getattr(old.impl, name, None) is not None:
            raise ValueError(f"share needs attention without {name}, which it would leave out; serve without +share")
    if old.kv_cache_dtype not in PLAIN:
        raise ValueError(
            f"share needs a plain KV cache and this one is {old.kv_cache_dtype}; leave --kv-cache-dtype out"
        )
    if old.attn_backend.get_name() not in BACKENDS:
        raise ValueError(
            f"share runs on {' and '.join(BACKENDS)}, and vLLM chose {old.attn_backend.get_name()}; give "
            "--attention-backend FLASH_ATTN, or serve without +share"
        )


def weigh(language_model: nn.Module, log_size: Tensor) -> None:
    """Every attention of the decoder replaced."""
    every = [(m, name, child) for m in language_model.modules() for name, child in m.named_children()]
    for parent, name, child in every:
        if isinstance(child, Attention):
            setattr(parent, name, WeighedAttention(child, log_size))
