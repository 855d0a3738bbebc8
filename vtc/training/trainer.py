"""transformers' Trainer with the losses of ``vtc.training``, checkpoints of what learns, and a stop at NaN."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from vtc.errors import CheckpointError, VTCError
from vtc.files.atomic import write_atomic, write_text
from vtc.patching.api import prompts_end_at
from vtc.training.collate import SAMPLES
from vtc.training.curves import draw, lines
from vtc.training.losses import answer_loss, at_labels, distillation_loss
from vtc.training.parameters import set_trained, trained
from vtc.training.teachers import Teacher

TRAINED, STATE, LOG = "trained.safetensors", "trainer_state.json", "log.jsonl"


class NotFinite(VTCError):
    """A loss that is NaN or infinite; the message names step and samples."""


class FineTuner(Trainer):
    """``loss = (1 - weight) answers + weight T² KL(teacher)``, per answer token of the whole step, over all processes.

    teacher: None learns from the answers alone. Checkpoints hold what learns, optimizer, schedule and random numbers:
    training that goes on from one gives the numbers of one that never stopped.
    """

    def __init__(
        self, *args: Any, teacher: Teacher | None = None, temperature: float = 1.0, weight: float = 0.5, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise VTCError(f"{self.args.n_gpu} GPUs and one process; start with torchrun --nproc_per_node")
        self.teacher, self.temperature, self.weight = teacher, temperature, weight
        self.model_accepts_loss_kwargs = True  # the loss is divided by the answer tokens of the whole step, here
        self.add_callback(Curves())

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        samples, labels = inputs.pop(SAMPLES), inputs.pop("labels")
        taught = None if self.teacher is None else at_labels(self.teacher(model, inputs), labels)[0]
        with prompts_end_at(self.accelerator.unwrap_model(model), labels):
            outputs = model(**inputs, use_cache=False)
        scores, wanted = at_labels(outputs.logits, labels)
        loss = answer_loss(scores, wanted)
        if taught is not None:
            both = min(scores.shape[1], taught.shape[1])  # tables of one vocabulary may be padded differently
            told = distillation_loss(scores[:, :both], taught[:, :both], self.temperature)
            loss = (1 - self.weight) * loss + self.weight * told
        if not torch.isfinite(loss):
            raise NotFinite(
                f"the loss is {loss.item()} at step {self.state.global_step + 1}, samples {', '.join(samples)}; look "
                "at these samples, or lower --rate and start again: the last checkpoint is sound"
            )
        loss = loss / (len(wanted) if num_items_in_batch is None else num_items_in_batch)
        loss = loss * self.accelerator.num_processes  # their gradients are averaged
        return (loss, outputs) if return_outputs else loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """What learns, by name, in one file."""
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        learns = trained(cast(nn.Module, self.model))
        names = {plain(name) for name in learns}
        tensors = learns if state_dict is None else state_dict
        found = {plain(n): t.detach().cpu().contiguous() for n, t in tensors.items() if plain(n) in names}
        write_atomic(folder / TRAINED, lambda path: save_file(found, path))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        folder = Path(resume_from_checkpoint)
        set_trained(cast(nn.Module, self.model), read_learned(folder), str(folder / TRAINED))


def plain(name: str) -> str:
    """A parameter's name without what FSDP and checkpoint wrappers put in."""
    return name.replace("_fsdp_wrapped_module.", "").replace("_checkpoint_wrapped_module.", "")


class Curves(TrainerCallback):
    """After every log ``log.jsonl``, at the end ``loss.png``, from what the trainer remembers across a stop.

    Every checkpoint is a line, too: a sum of losses that was half way to its line would not outlive a stop.
    """

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_log |= control.should_save

    def on_log(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            write_text(Path(str(args.output_dir)) / LOG, lines(state.log_history))

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            draw(state.log_history, Path(str(args.output_dir)) / "loss.png")


def last_checkpoint(folder: Path, processes: int = 1) -> Path | None:
    """The newest whole checkpoint: one that was cut off has no whole ``trainer_state.json``, which is written last, or
    lacks the random numbers of a process."""
    names = [f"rng_state_{n}.pth" for n in range(processes)] if processes > 1 else ["rng_state.pth"]
    whole = [p for p in folder.glob("checkpoint-*") if is_json(p / STATE) and all((p / n).is_file() for n in names)]
    return max(whole, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def steps_of(checkpoint: Path) -> int:
    """The steps that are behind it."""
    return TrainerState.load_from_json(str(checkpoint / STATE)).global_step


def end_with(checkpoint: Path, output: Path) -> None:
    """What a training leaves in ``output`` whose last checkpoint holds its last step."""
    learned, history = read_learned(checkpoint), TrainerState.load_from_json(str(checkpoint / STATE)).log_history
    write_atomic(output / TRAINED, lambda path: save_file(learned, path))
    write_text(output / LOG, lines(history))
    draw(history, output / "loss.png")


def read_learned(checkpoint: Path) -> dict[str, Tensor]:
    """The parameters that learn, by name. Raises ``CheckpointError`` for a damaged file."""
    path = checkpoint / TRAINED
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); delete that checkpoint to go on before it") from None
