"""FLOPs of a forward as torch's counter counts them, the library's own operations included: to the counter each of
those is one operation it knows nothing of."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

# each defines an operation
from vtc.kernels import decode_merged, greedy_diverse, match, merged_attention, received_attention  # noqa: F401

OPS = torch.ops.vtc
Shape = tuple[int, ...]


def counter() -> FlopCounterMode:
    """Counts what runs inside ``with``; ``get_total_flops()`` afterwards. Matrix products, convolutions and attention
    (the whole square, causal or not); a multiply-add is 2."""
    return FlopCounterMode(display=False)


@register_flop_formula([OPS.merged_attention, OPS.decode_merged])
def attention(q: Shape, k: Shape, v: Shape, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    batch, heads, rows, width = q
    return 4 * batch * heads * rows * k[2] * width


@register_flop_formula(OPS.received_attention)
def received(q: Shape, k: Shape, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    batch, heads, rows, width = q
    return 2 * batch * heads * rows * k[2] * width


@register_flop_formula(OPS.match)
def matches(a: Shape, b: Shape, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    pictures, tokens, width = a
    return 2 * pictures * tokens * b[1] * width


@register_flop_formula(OPS.greedy_diverse)
def greedy(
    x: Shape, allowed: Shape, quality: Any, keep: int, kind: str, *, out_shape: Any = None, **kwargs: Any
) -> int:
    """As the torch reference goes about it; the kernels hold all cosines instead."""
    pictures, tokens, width = x
    rows = {"maxmin": tokens + keep, "dpp": keep, "coverage": tokens}[kind]  # of cosines with all tokens
    steps = keep * keep * tokens if kind == "dpp" else 0
    return pictures * (2 * rows * tokens * width + steps)
