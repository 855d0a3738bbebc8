"""The log of a training as lines and as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vtc.files.atomic import finite, write_atomic


def lines(history: list[dict[str, Any]]) -> str:
    """The losses that the trainer logged, a JSON object a line with sorted keys: the same for a training that was
    stopped. What it says at its end, seconds and means since it started, is of the process and not of the training."""
    return "".join(json.dumps(finite(entry), sort_keys=True) + "\n" for entry in history if "loss" in entry)


def losses(history: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """(step, mean loss since the entry before)."""
    return [(entry["step"], entry["loss"]) for entry in history if "loss" in entry]


def draw(history: list[dict[str, Any]], path: Path) -> None:
    """Loss over steps. Draws nothing where matplotlib is not installed, or nothing was logged."""
    points = losses(history)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    if not points:
        return
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*points, strict=True), color="#0072b2")
    axes.set(xlabel="step", ylabel="loss, nats an answer token", ylim=(0, None))
    write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=150))
