"""A picture as it stands in the prompt, before its reduction and after."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

HERE = -1  # a feature stands here; every other id is a word


@dataclass(frozen=True)
class Span:
    """Of one picture, the tokens from its first feature to its last, with the words between its rows or tiles.

    ids: of words, ``HERE`` for features; keep: how many features are kept. Between which
    words these will stand is known only when the picture has been encoded: so the words are rows of the picture, too.
    """

    keep: int
    ids: tuple[int, ...]

    @classmethod
    def of(cls, data: Tensor) -> Span:
        keep, *ids = data.tolist()
        return cls(keep, tuple(ids))

    @property
    def data(self) -> Tensor:
        """``[1 + L]``: as one field of vLLM's inputs."""
        return torch.tensor([self.keep, *self.ids])

    @property
    def count(self) -> int:
        """Features before the reduction."""
        return self.ids.count(HERE)

    @property
    def rows(self) -> int:
        """Rows after it."""
        return self.keep + len(self.ids) - self.count


def cut(content: Any, keep: Any) -> tuple[Any, Span]:
    """The placeholders of one picture (``PromptUpdateDetails``) with fewer rows, ``keep(count)`` for its features, and
    what stood there."""
    full = list(content.full)
    features = torch.ones(len(full)) if content.is_embed is None else content.is_embed(full)
    at = features.nonzero()[:, 0].tolist()
    first, last = at[0], at[-1] + 1
    ids = torch.tensor(full).where(~features.bool(), HERE)[first:last]
    span = Span(keep(len(at)), tuple(ids.tolist()))
    mask = torch.tensor([False] * first + [True] * span.rows + [False] * (len(full) - last))
    fewer = full[:first] + [full[first]] * span.rows + full[last:]
    return replace(content, full=fewer, is_embed=lambda _: mask), span
