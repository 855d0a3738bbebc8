"""Rows keep the positions that they had in the whole picture: a decoder is told where things stood, as in
transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase
from vllm.model_executor.layers.rotary_embedding.mrope import MRotaryEmbedding

from vtc.integrations.vllm.processor import SPAN
from vtc.integrations.vllm.span import HERE, Span

LONGEST = 16384  # tokens of a picture before its reduction


def as_if_whole(
    tokens: Sequence[int],
    features: Sequence[Any],
    positions: Callable[[list[int], list[Any]], tuple[Tensor, int]],
) -> tuple[Tensor, int]:
    """``[3, n]`` positions of a prompt whose pictures are reduced, and how far behind their number decoding goes on.

    positions(tokens, features): those of a whole prompt. Every row of a picture gets its first position: where in it
    the row stood is known only when the picture has been encoded.
    """
    whole, columns, moved, start = list[int](), list[int](), [], 0
    for feature in sorted(features, key=lambda one: one.mm_position.offset):
        at = feature.mm_position
        shift = len(whole) - start
        if SPAN not in (feature.data or ()):
            moved.append(replace(feature, mm_position=replace(at, offset=at.offset + shift)))
            continue
        span = Span.of(feature.data[SPAN].data)
        before = 0 if at.is_embed is None else int(at.is_embed.nonzero()[0, 0])
        first = at.offset + before
        columns += range(len(whole), first + shift)
        whole += tokens[start:first]
        columns += [len(whole)] * span.rows
        whole += [tokens[first] if one == HERE else one for one in span.ids]
        start = first + span.rows
        behind = at.offset + at.length - start
        mask = torch.tensor([False] * before + [one == HERE for one in span.ids] + [False] * behind)
        at = replace(at, offset=at.offset + shift, length=len(mask), is_embed=mask)
        moved.append(replace(feature, mm_position=at))
    columns += range(len(whole), len(whole) + len(tokens) - start)
    whole += tokens[start:]
    found, delta = positions(whole, moved)
    return found[:, columns].contiguous(), delta + len(whole) - len(tokens)


def stretch(language_model: Any, positions: int) -> None:
    """Rotary tables for the positions of whole pictures: vLLM's kernels read past the end of a short one without an
    error. Raises ``ValueError`` for tables of an own making."""
    for module in language_model.modules():
        table = getattr(module, "cos_sin_cache", None)
        if table is None or len(table) >= positions:
            continue
        own = type(module)._compute_cos_sin_cache is not RotaryEmbeddingBase._compute_cos_sin_cache
        if own and not (isinstance(module, MRotaryEmbedding) and module.scaling_factor is None):
            raise ValueError(
                f"{type(module).__name__} makes its table by a rule of its own, and whole pictures' positions go past "
                f"its {len(table)}; give a --max-model-len that they fit in unreduced"
            )
        module.max_position_embeddings = positions
        module.cos_sin_cache = module._compute_cos_sin_cache().to(table)
