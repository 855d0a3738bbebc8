"""Optimisers, the schedule on a wall-clock budget, and files that are replaced at once."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vtc.files.atomic import write_atomic

RATE = 2e-3


class Optimisers:
    """Muon for the matrices inside the blocks, AdamW for everything else."""

    def __init__(self, body: Iterable[nn.Module], heads: Iterable[nn.Module]) -> None:
        inner = [(n, p) for module in body for n, p in module.named_parameters()]
        matrices = [p for n, p in inner if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in inner if p.ndim != 2 or "embed" in n]
        others += [p for module in heads for p in module.parameters()]
        self.parameters = matrices + others
        self.parts = (
            torch.optim.Muon(matrices, lr=RATE, weight_decay=0.02, adjust_lr_fn="match_rms_adamw", nesterov=True),
            torch.optim.AdamW(others, lr=RATE, weight_decay=0.01, betas=(0.9, 0.98)),
        )

    def step(self, factor: float) -> None:
        """One update at `factor` times the full rate."""
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = RATE * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def restore(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


class Clock:
    """How much of a wall-clock budget is gone; goes on where a stopped run ended."""

    def __init__(self, minutes: float, spent: float = 0.0) -> None:
        self.budget = minutes * 60
        self.start = time.monotonic() - spent

    @property
    def spent(self) -> float:
        return time.monotonic() - self.start

    @property
    def fraction(self) -> float:
        return self.spent / self.budget


def rate_factor(step: int, fraction: float, hold: float) -> float:
    """Warm-up of 40 steps, then the full rate up to `hold` of the budget, then a linear decay."""
    warm = min(1.0, (step + 1) / 40)
    return warm * (1.0 if fraction < hold else max(0.02, (1 - fraction) / (1 - hold)))


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a file that is whole or absent."""
    write_atomic(path, lambda temporary: torch.save(state, temporary))
