"""Rows keep the positions that they had in the whole picture: a decoder is told where things stood, as in
transformers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase
from vllm.model_executor.layers.rotary_embedding.mrope import MRotaryEmbedding

LONGEST = 16384  # tokens of a picture before its reduction


def as_if_whole(
    tokens: Sequence[int],
    features: Sequence[Any],
    count: Callable[[Any], int],
    positions: Callable[[list[int], list[Any]], tuple[Tensor, int]],
    modalities: Collection[str] = ("image",),
) -> tuple[Tensor, int]:
    """``[3, n]`` positions of a prompt whose pictures are reduced, and how far behind their number decoding goes on.

    count(feature): tokens of that picture before; positions(tokens, features): those of a whole prompt; modalities:
    those that are reduced. Every row of a picture gets its first position: where in it the row stood is known only when
    the picture has been encoded.
    """
    whole: list[int] = []
    moved, columns, start = [], list[int](), 0
    for feature in sorted(features, key=lambda one: one.mm_position.offset):
        at, rows = feature.mm_position.offset, feature.mm_position.length
        columns += range(len(whole), len(whole) + at - start)
        whole += tokens[start:at]
        reduced = feature.modality in modalities
        first, before = len(whole), count(feature) if reduced else rows
        columns += [first] * rows if reduced else range(first, first + rows)
        moved.append(replace(feature, mm_position=replace(feature.mm_position, offset=first, length=before)))
        whole += [tokens[at]] * before
        start = at + rows
    columns += range(len(whole), len(whole) + len(tokens) - start)
    whole += tokens[start:]
    found, delta = positions(whole, moved)
    return found[:, columns].contiguous(), delta + len(whole) - len(tokens)


def in_a_line(tokens: list[int], features: list[Any]) -> tuple[Tensor, int]:
    """Of a decoder without M-RoPE."""
    return torch.arange(len(tokens)).expand(3, -1), 0


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
