"""What decides the numbers of a training."""

from __future__ import annotations

from dataclasses import dataclass

from vtc.errors import VTCError


@dataclass(frozen=True)
class Settings:
    """What decides the numbers of a training; a run that goes on must have the same. See ``scripts/finetune.py``."""

    model: str
    train: str = "projector"
    data: str = "scenes"
    data_dir: str | None = None
    samples: int = 100_000  # of the testbed
    method: str | None = None
    budget: int | float = 0.25
    elastic: str | None = None  # budgets, comma separated
    steps: int = 1000
    batch: int = 8  # conversations a process and forward
    accumulate: int = 1  # forwards a step
    rate: float = 1e-4
    warmup: float = 0.03  # share of the steps
    rank: int = 16
    max_length: int | None = None
    bf16: bool = False
    gradient_checkpointing: bool = False
    distill: float | None = None  # temperature
    weight: float = 0.5  # of the distillation
    teacher: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "steps", "batch", "accumulate", "rank"):
            if getattr(self, name) < 1:
                raise VTCError(f"--{name} {getattr(self, name)} is below 1; give a whole number of at least 1")
        if not self.rate > 0 or not 0 <= self.warmup < 1:
            raise VTCError(f"--rate {self.rate} must be above 0, and --warmup {self.warmup} in [0, 1)")
        if self.distill is not None and not self.distill > 0:
            raise VTCError(f"--distill {self.distill} is no temperature; give one above 0, like 2")
        if not 0 < self.weight <= 1:
            raise VTCError(f"--weight {self.weight} is not in (0, 1]; 1 learns from the teacher alone")
