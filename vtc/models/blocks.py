"""Pre-norm transformer blocks in their two halves, so that tokens can merge between attention and MLP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

Hear = Callable[[Tensor], None]


@dataclass(frozen=True)
class Block:
    """One block of a tower, ``feed(attend(x, bias))`` where nothing merges.

    attend: states ``[T, t, D]`` after attention and its residual, ``bias [T, 1, 1, t]`` added to the logits or None;
    feed: states after the MLP and its residual; hear: call back with the keys ``[T, heads, t, d]`` of each attention
    that runs, returns the undo.
    """

    module: nn.Module
    attend: Callable[[Tensor, Tensor | None], Tensor]
    feed: Callable[[Tensor], Tensor]
    hear: Callable[[Hear], Callable[[], None]]
