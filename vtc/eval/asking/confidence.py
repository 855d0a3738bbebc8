"""How sure the model was of an answer it gave greedily, at the cost of one log-sum-exp a token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

DIGITS = 4  # kept: batches of other sizes round differently beyond


class Chosen(LogitsProcessor):
    """Listens to one greedy ``generate``: the log-probability of each token that will be chosen. Changes nothing.

    ``output_scores=True`` would hold the logits of the whole vocabulary for every token.
    """

    def __init__(self) -> None:
        self.steps: list[Tensor] = []  # [B] each

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        self.steps.append(scores.amax(-1) - scores.logsumexp(-1))
        return scores

    def probability(self, new: Tensor, eos: int | list[int] | None) -> list[float]:
        """Of each answer in ``new`` ``[B, n]``: the product over its tokens, end-of-text included where given."""
        ends = torch.isin(new, torch.tensor([] if eos is None else eos, dtype=new.dtype, device=new.device))
        said = ends.cumsum(1) - ends.long() == 0  # up to the first end; what follows is padding
        steps = torch.stack(self.steps, 1).cpu().double()  # MPS has no float64
        total = steps.masked_fill(~said.cpu(), 0.0).sum(1)
        return [round(p, DIGITS) for p in total.exp().tolist()]
