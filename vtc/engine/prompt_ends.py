"""Where the prompts of a forward end: what is learned from them, written or drafted for them is no part of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vtc.engine.kv_cache import cache_given, logical_length

IGNORE = -100  # labels that are not learned, as in transformers


class PromptEnds:
    """What those who call the model say of the forwards that come."""

    def __init__(self) -> None:
        self.labels: Tensor | None = None
        self.given: int | None = None  # tokens of each prompt that ``generate`` was given

    @contextmanager
    def at(self, labels: Tensor | None) -> Iterator[None]:
        """Prompts of the forwards inside end where ``labels [B, N]`` begin (None: as it was said outside)."""
        before, self.labels = self.labels, self.labels if labels is None else labels
        try:
            yield
        finally:
            self.labels = before

    @contextmanager
    def generating(self, given: int | None) -> Iterator[None]:
        """The forwards inside are those of ``generate``, for prompts of ``given`` tokens (None: not given as ids)."""
        before, self.given = self.given, given
        try:
            yield
        finally:
            self.given = before

    def of(self, batch: int, length: int, past: int, by_ids: bool) -> Tensor | None:
        """``[B]`` on the CPU: before which of its ``length`` rows, behind ``past`` in the cache, each prompt of a
        forward ends; None: all are prompt. Behind it stands what is learned, or what ``generate`` wrote and drafted:
        candidates of speculative decoding, and all it wrote where it uses no cache."""
        if self.labels is not None:
            if self.labels.shape != (batch, length):
                had = list(self.labels.shape)
                raise ValueError(f"labels are {had} and the prompts {[batch, length]}; give one a row")
            first = (self.labels != IGNORE).int().argmax(dim=1).cpu()
            return first.where(first > 0, length)
        if self.given is not None and by_ids and self.given < past + length:
            return torch.full((batch,), max(self.given - past, 0))
        return None


def real_part(kwargs: dict[str, Any], said: PromptEnds, batch: int, length: int) -> tuple[Tensor | None, Tensor | None]:
    """Of a forward's rows, on the CPU: which are no padding, ``[B, N]`` bool or None (all), and ``[B]``, before which
    each prompt ends, or None (all are prompt)."""
    padding = real_rows(kwargs.get("attention_mask"), length)
    ends = said.of(batch, length, logical_length(cache_given(kwargs)), kwargs.get("input_ids") is not None)
    return None if padding is None or bool(padding.all()) else padding, ends


def real_rows(mask: Any, length: int) -> Tensor | None:
    """``[B, length]`` bool on the CPU: the rows of a forward that are no padding; None where no mask says so."""
    return mask[:, -length:].bool().cpu() if isinstance(mask, Tensor) and mask.dim() == 2 else None
