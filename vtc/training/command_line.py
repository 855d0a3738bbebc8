"""The options of ``scripts/finetune.py`` and ``scripts/heal.py``: one for each setting of a training."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from pathlib import Path

from vtc.errors import VTCError
from vtc.tokens import Budget
from vtc.training.run import run
from vtc.training.settings import Settings

HELP = {
    "model": "model folder, or a model id of the hub",
    "train": "projector, compressor (what the method learns), lora, all, or layers:auto (by a sensitivity pass)",
    "data": "scenes, a .jsonl file, or a data set that the library datasets loads",
    "data_dir": "folder that pictures are in and never leave (default: that of the file)",
    "samples": "questions of the testbed",
    "method": "as in vtc eval, like divprune+share or perceiver:depth=1 (default: no patch, or the saved one)",
    "budget": "vision tokens a picture, like 12, or a share, like 0.0625",
    "elastic": "budgets, like 24,12,6: each step draws one; the result is saved with --budget",
    "steps": "steps of the optimizer",
    "batch": "conversations a process and forward",
    "accumulate": "forwards a step",
    "rate": "learning rate at its highest",
    "warmup": "share of the steps in which the rate grows",
    "rank": "of the adapters of --train lora",
    "max_length": "most tokens of a conversation; whole turns are dropped from its end, never a picture",
    "bf16": "forwards under autocast to bfloat16; weights stay float32",
    "gradient_checkpointing": "less memory, a third more time",
    "distill": "match the logits of the teacher at this temperature",
    "weight": "of the teacher in the loss; the answers have the rest",
    "teacher": "a larger model; without --distill its answers are learned (default: the model itself, unpatched)",
    "seed": "of everything that is drawn",
}


def parser(doc: str, defaults: dict) -> argparse.ArgumentParser:
    """One option for each setting."""
    out = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--output", type=Path, required=True, help="folder of the run")
    kinds: dict = {"budget": lambda text: Budget.of(text).value, "max_length": int, "distill": float}
    for field in dataclasses.fields(Settings):
        name, default = "--" + field.name.replace("_", "-"), defaults.get(field.name, field.default)
        required = default is dataclasses.MISSING
        told = HELP[field.name] + ("" if required or default in (None, False) else f" (default {default})")
        if isinstance(default, bool):
            out.add_argument(name, action="store_true", help=told)
        else:
            kind = kinds.get(field.name, str if default is None or required else type(default))
            out.add_argument(name, type=kind, required=required, default=None if required else default, help=told)
    out.add_argument("--save-every", type=int, default=200, help="steps between checkpoints (default 200)")
    out.add_argument("--log-every", type=int, default=10, help="steps between lines of the log (default 10)")
    out.add_argument("--overwrite", action="store_true", help="start over in a folder that holds a run")
    out.add_argument("--workers", type=int, default=0, help="processes that load data (default 0: this one)")
    return out


def start(given: argparse.Namespace) -> None:
    """Run it; errors of the user as one line."""
    options = vars(given)
    how = {name: options.pop(name) for name in ("output", "save_every", "log_every", "workers", "overwrite")}
    try:
        result = run(Settings(**options), **how)
    except VTCError as error:
        sys.exit(f"error: {error}")
    if os.environ.get("RANK", "0") == "0":
        print(result)
