"""What decides the numbers of a training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from vtc.errors import VTCError


@dataclass(frozen=True)
class Settings:
    """What decides the numbers of a training; a run that goes on must have the same. Each is an option of
    ``vtc finetune`` and ``vtc heal``, with these words as its help."""

    model: Annotated[str, "A model folder, a model id of the hub, or scenes: the built-in testbed."]
    train: Annotated[
        str, "What learns: projector, compressor (the method's own), lora, all, or layers:auto (by a sensitivity pass)."
    ] = "projector"
    data: Annotated[str, "scenes, a .jsonl file, or a data set that the library datasets loads."] = "scenes"
    data_dir: Annotated[str | None, "The folder that pictures are in and never leave; default: the file's."] = None
    samples: Annotated[int, "Questions of the testbed."] = 100_000
    method: Annotated[
        str | None, "As in vtc eval, like divprune+share or perceiver:depth=1; default: no patch, or the saved one."
    ] = None
    budget: Annotated[int | float, "Vision tokens a picture (12) or a share (0.0625, 25%)."] = 0.25
    elastic: Annotated[
        str | None, "Budgets, comma separated: each step draws one; the result is saved with --budget."
    ] = None
    steps: Annotated[int, "Steps of the optimizer."] = 1000
    batch: Annotated[int, "Conversations a process and forward."] = 8
    accumulate: Annotated[int, "Forwards a step."] = 1
    rate: Annotated[float, "Learning rate at its highest."] = 1e-4
    warmup: Annotated[float, "Share of the steps in which the rate grows."] = 0.03
    rank: Annotated[int, "Of the adapters of --train lora."] = 16
    max_length: Annotated[
        int | None, "Most tokens of a conversation; whole turns are dropped from its end, never a picture."
    ] = None
    bf16: Annotated[bool, "Forwards under autocast to bfloat16; weights stay float32."] = False
    gradient_checkpointing: Annotated[bool, "Less memory, a third more time."] = False
    distill: Annotated[float | None, "Match the logits of the teacher at this temperature."] = None
    weight: Annotated[float, "Of the teacher in the loss; the answers have the rest."] = 0.5
    teacher: Annotated[
        str | None, "Another model; without --distill its answers are learned. Default: the model itself, unpatched."
    ] = None
    seed: Annotated[int, "Of everything that is drawn."] = 0

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
