"""What the tests of compression share: prompts to fit to, what a model answers to them, and how far two answers are."""

from __future__ import annotations

import torch
from torch import Tensor

from tests import zoo


def prompts(model) -> list[dict]:
    """Two prompts, of one picture and of two."""
    return [zoo.prompt(model, pictures=n, seed=n) for n in (1, 2)]


def logits(model) -> Tensor:
    """Of every token of ``prompts``, one after the other."""
    with torch.no_grad():
        return torch.cat([model(**p).logits[0] for p in prompts(model)])


def distance(a: Tensor, b: Tensor) -> float:
    """The norm of the difference by the norm of ``b``."""
    return float((a - b).norm() / b.norm())
