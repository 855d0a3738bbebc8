"""One training from settings to a saved model: what ``vtc finetune`` and ``vtc heal`` do."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainingArguments, set_seed

import vtc
from vtc.checkpoint.config import CONFIG
from vtc.checkpoint.save_load import compression_of
from vtc.errors import CheckpointError, DataError, VTCError
from vtc.eval.asking.load import folder_of as folder_of_model
from vtc.eval.asking.load import load as load_plain
from vtc.eval.asking.load import pick_device
from vtc.eval.cells import parse_budgets
from vtc.eval.results.settings import same_settings
from vtc.files.atomic import write_text
from vtc.files.digest import weights_sha256
from vtc.files.lock import lock
from vtc.files.strict import parse_json, read_json
from vtc.methods._spelling import build
from vtc.models.inspection import unwrapped
from vtc.patching.api import patch_of
from vtc.training.collate import Collator
from vtc.training.conversations import Answered, Source, source
from vtc.training.elastic import Elastic
from vtc.training.factors import thaw
from vtc.training.parameters import choose, essential, sensitivities
from vtc.training.settings import Settings
from vtc.training.teachers import Other, Own, Teacher, answers, check_alike
from vtc.training.trainer import TRAINED, FineTuner, end_with, last_checkpoint, steps_of

PROBED = 32  # conversations of the sensitivity pass, one at a time: the same for any batch and number of processes
OURS = (
    "checkpoint-*",
    "model",
    "log.jsonl",
    "answers.jsonl",
    "config.json",
    "layers.json",
    "loss.png",
    TRAINED,
)


def run(
    settings: Settings, output: Path, save_every: int, log_every: int, workers: int = 0, overwrite: bool = False
) -> Path:
    """Train, or go on where a training with the same settings stopped; the folder of the result, ``output/model``.

    overwrite: start over, without what an earlier run left in ``output``. Under torchrun every process calls this.
    Raises ``RunRefused`` for a folder that holds a run with other settings, which are named, and ``VTCError`` for what
    cannot be trained.
    """
    args = arguments(settings, output, save_every, log_every, workers)
    set_seed(settings.seed)
    model, processor = load(settings)
    data = source(settings.data, settings.samples, folder_of(settings))
    collate = Collator(processor, longest(model, settings))
    held = begin(settings, output, args, data, overwrite)
    try:
        data, teacher = taught(settings, output, args, processor, data)
        check_pictures(settings, data)
        layers = chosen_layers(settings, output, args, model, data, collate)
        checkpoint = last_checkpoint(output, args.world_size)
        if checkpoint is None or steps_of(checkpoint) < settings.steps:
            model = choose(model, settings.train, settings.rank, layers)
            fit(model, data, collate, args, settings, teacher, checkpoint).save_model(str(output))
        elif args.process_index == 0:  # the trainer would train a step beyond the last
            end_with(checkpoint, output)
        if args.process_index == 0:
            finish(settings, output, processor)
    finally:
        if held is not None:
            held.release()
    return output / "model"


def arguments(settings: Settings, output: Path, save_every: int, log_every: int, workers: int) -> TrainingArguments:
    """The trainer's arguments; the first thing, since they join the processes of torchrun."""
    args = TrainingArguments(
        output_dir=str(output),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=settings.rate,
        lr_scheduler_type="cosine",
        warmup_steps=settings.warmup,
        bf16=settings.bf16,
        ddp_find_unused_parameters=True,  # a batch without pictures leaves the projector out
        logging_steps=log_every,
        save_steps=save_every,
        save_total_limit=2,
        seed=settings.seed,
        dataloader_num_workers=workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        use_cpu=pick_device("auto") == "cpu",  # without it, processes on CPUs would not find each other
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if args.world_size != started:
        raise VTCError(f"{started} processes were started and {args.world_size} train together; start with torchrun")
    return args


def load(settings: Settings) -> tuple[Any, Any]:
    """(model, processor) in float32, patched as asked, low-rank factors ready to learn."""
    folder = Path(settings.model)
    if (folder / CONFIG).exists():
        from transformers import AutoProcessor

        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        model = vtc.load(folder, dtype=torch.float32)
        if hasattr(model, "peft_config"):
            raise VTCError(f"{folder} has an adapter; merge_and_unload() it, vtc.save that, and train it further")
    else:
        model, processor = load_plain(settings.model, "float32", "cpu")
    if settings.method is not None:
        vtc.patch(model, build(settings.method), settings.budget)
    thaw(model)
    return model, processor


def folder_of(settings: Settings) -> Path | None:
    return None if settings.data_dir is None else Path(settings.data_dir)


def longest(model: Any, settings: Settings) -> int | None:
    """Most tokens of a row: what was asked, and no more than the decoder has positions for."""
    most = getattr(unwrapped(model).config.get_text_config(), "max_position_embeddings", None)
    return min((n for n in (settings.max_length, most) if n is not None), default=None)


def begin(
    settings: Settings, output: Path, args: TrainingArguments, data: Source, overwrite: bool = False
) -> FileLock | None:
    """The first process locks the folder and compares its settings with the run that it holds."""
    config = dataclasses.asdict(settings) | {"data": data.name, "processes": args.world_size, "weights": ""}
    if (folder := Path(folder_of_model(settings.model))).is_dir():
        config["weights"] = weights_sha256(folder)
    held = None
    with args.main_process_first(local=False):
        if args.process_index == 0:
            output.mkdir(parents=True, exist_ok=True)
            held = lock(output)
            try:
                if overwrite:
                    clear(output)
                same_settings(output, config)
            except BaseException:
                held.release()
                raise
    return held


def clear(output: Path) -> None:
    """Remove what a run writes, and nothing else."""
    for path in (path for pattern in OURS for path in output.glob(pattern)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def taught(
    settings: Settings, output: Path, args: TrainingArguments, processor: Any, data: Source
) -> tuple[Source, Teacher | None]:
    """The data, answered by a teacher where one is given without ``distill``; and who is asked in every step."""
    if settings.teacher is None:
        return data, None if settings.distill is None else Own()
    if settings.distill is not None:
        model, other = load(Settings(settings.teacher))
        check_alike(processor, other, data[0])
        return data, Other(model.to(args.device))
    path = output / "answers.jsonl"
    with args.main_process_first(local=False):
        if not path.exists():
            model, other = load(Settings(settings.teacher))
            asked = answers(model.eval().to(args.device), other, (data[n] for n in range(len(data))))
            write_text(path, "".join(json.dumps([r.id, [t.answer for t in r.turns]]) + "\n" for r in asked))
    return Answered(data, read_answers(path), settings.teacher), None


def read_answers(path: Path) -> dict[str, Any]:
    """The teacher's answers by the ids of the samples. Raises ``CheckpointError`` for a line that is none."""
    rows = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        where = f"{path} line {number}"
        told = parse_json(b'{"row": %s}' % line, where)["row"]  # the reader takes objects, and a line is a list
        if not isinstance(told, list) or len(told) != 2 or not isinstance(told[1], list) or type(told[0]) is not str:
            raise CheckpointError(f"{where} is no id with answers; delete the file, and the teacher is asked again")
        rows[told[0]] = told[1]
    return rows


def check_pictures(settings: Settings, data: Source) -> None:
    """Where only pictures teach, a conversation without one is an error, before the first step."""
    if settings.train not in ("projector", "compressor"):
        return
    for row in getattr(data, "rows", ()):
        images = getattr(row, "images", True)
        if not images:
            raise DataError(
                f"{row.where}: sample {row.id} has no picture and teaches a {settings.train} nothing; leave it out, or "
                "train lora or all"
            )


def chosen_layers(
    settings: Settings, output: Path, args: TrainingArguments, model: nn.Module, data: Source, collate: Collator
) -> list[int]:
    """The layers of ``layers:auto``: measured once by the first process, kept in ``layers.json``."""
    if settings.train != "layers:auto":
        return []
    path = output / "layers.json"
    with args.main_process_first(local=False):
        if not path.exists():
            rows: DataLoader = DataLoader(data, 1, collate_fn=collate)  # type: ignore[arg-type]
            squares = sensitivities(model, islice(rows, PROBED))
            write_text(path, json.dumps({"layers": essential(squares), "squares": squares}) + "\n")
    return read_layers(path)


def read_layers(path: Path) -> list[int]:
    """What ``chosen_layers`` wrote. Raises ``CheckpointError`` for something else."""
    found = read_json(path).get("layers")
    if not isinstance(found, list) or not all(type(n) is int and n >= 0 for n in found):
        raise CheckpointError(f"{path} holds no layers; delete it, and they are measured again")
    return found


def fit(
    model: nn.Module,
    data: Source,
    collate: Collator,
    args: TrainingArguments,
    settings: Settings,
    teacher: Teacher | None = None,
    resume: Path | None = None,
) -> FineTuner:
    """The training itself, of whatever learns in ``model``, in place."""
    if settings.gradient_checkpointing:
        getattr(model, "gradient_checkpointing_enable")(gradient_checkpointing_kwargs={"use_reentrant": False})  # noqa: B009
    trainer = FineTuner(
        model=model,
        args=args,
        train_dataset=data,  # type: ignore[arg-type]
        data_collator=collate,  # type: ignore[arg-type]
        teacher=teacher,
        temperature=settings.distill or 1.0,
        weight=settings.weight,
    )
    if settings.elastic is not None:
        trainer.add_callback(Elastic(model, parse_budgets(settings.elastic), settings.seed))
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true" and not trainer.is_fsdp_enabled:
        raise VTCError("accelerate shards models on accelerators only, and this is a CPU; start with torchrun alone")
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def finish(settings: Settings, output: Path, processor: Any) -> None:
    """Save the result as a folder that ``vtc.load`` or ``from_pretrained`` reads. What learned is put into a model
    loaded anew, so that no wrapper of a process group is in the way."""
    from safetensors.torch import load_file

    from vtc.training.parameters import set_trained

    if not (output / TRAINED).is_file():
        raise CheckpointError(
            f"{output} holds no {TRAINED}: the weights are sharded; set fsdp_state_dict_type to FULL_STATE_DICT and "
            "give the same command again"
        )
    set_seed(settings.seed)
    model, _ = load(settings)
    layers = read_layers(output / "layers.json") if settings.train == "layers:auto" else []
    model = choose(model, settings.train, settings.rank, layers)
    set_trained(model, load_file(output / TRAINED), str(output / TRAINED))
    save(model.eval(), output / "model", processor)


def save(model: Any, folder: Path, processor: Any) -> None:
    """``vtc.save`` where there is a patch, compressed weights or an adapter, and an ordinary checkpoint elsewhere."""
    if patch_of(model) is None and compression_of(model) is None and not hasattr(model, "peft_config"):
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    else:
        vtc.save(model, folder, processor)
