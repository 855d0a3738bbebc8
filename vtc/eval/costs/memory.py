"""The most memory an answer takes on top of what is there before it: tensors on CUDA, resident pages on Linux."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from vtc.eval.asking.generate import Answerer, Asked
from vtc.eval.costs.interleaved import Turns
from vtc.eval.costs.timing import DECODED, Enter, spread

TURNS = 3
UNAVAILABLE = "unavailable"
PROCESS = Path("/proc/self")


def peak_memory(answerer: Answerer, enter: Enter, asked: list[Asked], turns: Turns) -> dict[str, dict[str, Any]]:
    """``peak_bytes`` above the model and its inputs while a batch is answered (prefill and ``DECODED`` + 1 tokens), the
    median of three turns after one that is not counted; ``"unavailable"`` where nothing reliable can be read."""
    inputs, device = answerer.inputs(asked), answerer.model.device
    peak = partial(cuda_peak, device=device) if device.type == "cuda" else resident_peak if readable(device) else None
    length = {"min_new_tokens": DECODED + 1, "max_new_tokens": DECODED + 1}
    if peak is None:
        return {name: {"peak_bytes": UNAVAILABLE, "source": UNAVAILABLE} for name in enter}

    def answered(number: int, name: str) -> dict[str, int]:
        with enter[name]():
            return {"peak_bytes": peak(lambda: answerer.generate(inputs, **length))}

    seen = turns.take("memory", enter, TURNS, answered, warm_up=1)
    grown = {name: [turn["peak_bytes"] for turn in each] for name, each in seen.items()}
    source = {"source": "cuda allocator" if device.type == "cuda" else "resident set", "batch": len(asked)}
    return {name: {"peak_bytes": median(each), "iqr_bytes": spread(each)} | source for name, each in grown.items()}


def cuda_peak(run: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors at the highest moment of the call, less those before it."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def resident_peak(run: Callable[[], object]) -> int:
    """Growth of the process's resident set to its highest moment in the call. What free() kept is given back first,
    or the call would fill old pages and seem to need none. Some hundred kB are noise of the page count."""
    ctypes.CDLL(None).malloc_trim(0)
    (PROCESS / "clear_refs").write_text("5")  # sets the high-water mark to the present size: proc(5)
    before = status("VmRSS")
    run()
    return max(status("VmHWM") - before, 0)


def readable(device: torch.device) -> bool:
    """Whether ``resident_peak`` works here: a CPU, Linux, glibc, and a high-water mark that can be set back."""
    try:
        return device.type == "cpu" and resident_peak(lambda: torch.ones(4 << 20)) >= 15 << 20
    except (OSError, AttributeError, KeyError, TypeError):  # Windows has no library without a name: TypeError
        return False


def status(key: str) -> int:
    """Bytes of one line of ``/proc/self/status``."""
    lines = dict(line.split(":", 1) for line in (PROCESS / "status").read_text().splitlines())
    return int(lines[key].split()[0]) * 1024
