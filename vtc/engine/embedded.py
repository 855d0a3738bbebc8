"""Prompts of embeddings: the rows that hold picture features, known again by their bits.

A forward with ``inputs_embeds`` alone names no placeholder. Its rows are words of the model's embedding table, or rows
of features that the model's own ``get_*_features`` gave while patched; anything else is refused: it may be a picture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vtc.errors import NotReduced
from vtc.models.base import Family, TowerRun

SEEN = 64  # columns that a row is known by
WORDS = 8192  # of the embedding table at a time
INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # of as many bytes


def rows_of(output: Any) -> Tensor:
    """``[T, SEEN]``: the first columns of all feature rows in what ``get_*_features`` returned, in order."""
    pooled = getattr(output, "pooler_output", output)
    if isinstance(pooled, Tensor):
        return pooled.detach().flatten(0, -2)[:, :SEEN].clone()
    return torch.cat([rows_of(part) for part in pooled])


def pictures_in(family: Family, runs: dict[str, TowerRun], embeds: Tensor, padding: Tensor | None) -> dict[str, Tensor]:
    """Modality -> bool ``[B, N]`` on the CPU: the rows of ``embeds [B, N, D]`` that hold features of ``runs``; empty
    where all rows are words. ``padding`` bool ``[B, N]``: True = real (None: all).

    Raises ``NotReduced`` where the features of a run are not all there, in order, or a row is neither.
    """
    keys = keys_of(embeds)
    words = torch.zeros_like(keys, dtype=torch.bool) if padding is None else ~padding.to(keys.device)
    found: dict[str, Tensor] = {}
    for modality, run in runs.items():
        if run.rows is None:
            continue
        own = keys_of(run.rows.to(embeds))
        where = torch.isin(keys, own) & ~words
        if bool(where.any()):
            _check_whole(modality, keys, where, own)
            found[modality], words = where.cpu(), words | where
    strange = ~(words | _is_word(family, keys, words, embeds.dtype))
    if bool(strange.any()):
        prompt, row = strange.nonzero()[0].tolist()
        raise NotReduced(
            f"row {row} of prompt {prompt} in inputs_embeds is no word of this model and no feature that its "
            "get_image_features (get_video_features) gave last while patched, so it may be a picture that nothing "
            "reduces; compute the features of all its pictures in one call after vtc.patch, give the prompt as "
            "input_ids with its pixels, or vtc.unpatch(model) to run it whole"
        )
    return found


def keys_of(rows: Tensor) -> Tensor:
    """``[...]`` int64: a hash of the bits of each row's first ``SEEN`` columns, of ``rows [..., D]``."""
    rows = rows.detach()[..., :SEEN].contiguous()
    bits = rows.view(INTEGER[rows.element_size()]).long()
    weights = torch.randint(2**62, (bits.shape[-1],), generator=torch.Generator().manual_seed(0))
    return (bits * (weights * 2 + 1).to(bits.device)).sum(dim=-1)


def _check_whole(modality: str, keys: Tensor, where: Tensor, own: Tensor) -> None:
    """All features in order, or each prompt's over and over (beams repeat prompts in place)."""
    total, held = len(own), int(where.sum())
    repeats = held // total
    if repeats and held % total == 0 and len(keys) % repeats == 0:
        same = [(keys[n::repeats], where[n::repeats]) for n in range(repeats)]
        if all(torch.equal(k[w], own) for k, w in same):
            return
    raise NotReduced(
        f"inputs_embeds hold {held} rows of the {total} {modality} features that were computed last, or in another "
        "order; put all features of one call into the prompts they were computed for, or give input_ids and pixels"
    )


def _is_word(family: Family, keys: Tensor, known: Tensor, dtype: torch.dtype) -> Tensor:
    """``[B, N]`` bool: which rows, of those not yet ``known``, stand in the model's embedding table, as ``dtype``."""
    table = family.base.get_input_embeddings()
    found = known.clone()
    for ids in torch.arange(table.num_embeddings, device=keys.device).split(WORDS):
        if bool(found.all()):
            break
        with torch.no_grad():
            found |= torch.isin(keys, keys_of(table(ids).to(dtype)))
    return found
