"""Joules a question, from the counters of the hardware: NVML on NVIDIA GPUs, RAPL on CPUs. Never estimated."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import torch

from vtc.eval.asking.generate import Answerer, Asked
from vtc.eval.costs.interleaved import Turns
from vtc.eval.costs.timing import Enter, now, spread

TURNS = 3
SECONDS = 1.0  # a reading spans at least this long: counters tick every millisecond (RAPL) to tenth of a second (NVML)
UNAVAILABLE = "unavailable"


class Meter(Protocol):
    name: str

    def measure(self, run: Callable[[], object]) -> float:
        """Joules of one call, idle power included."""


class NVML:
    """The energy counter of one NVIDIA GPU (millijoules since the driver was loaded). Raises where there is none."""

    name = "nvml"

    def __init__(self, device: torch.device):
        import pynvml

        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid  # NVML does not see CUDA_VISIBLE_DEVICES
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        self._read = lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        self._read()

    def measure(self, run: Callable[[], object]) -> float:
        before = self._read()
        run()
        return (self._read() - before) / 1e3


class RAPL:
    """The energy counters of all CPU packages (microjoules that wrap). Raises ``OSError`` where they cannot be read."""

    name = "rapl"

    def __init__(self, root: Path = Path("/sys/class/powercap")):
        zones = sorted(root.glob("intel-rapl:[0-9]*"))  # AMD's have this name too
        # not cores or memory, which are parts of a package, nor psys, which holds the packages
        self.zones = [zone for zone in zones if (zone / "name").read_text().startswith("package")]
        if not self.zones:
            raise FileNotFoundError(f"{root} has no RAPL package")
        self.ranges = [int((zone / "max_energy_range_uj").read_text()) for zone in self.zones]
        self._read()

    def _read(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self.zones]

    def measure(self, run: Callable[[], object]) -> float:
        before = self._read()
        run()
        spent = zip(before, self._read(), self.ranges, strict=True)
        return sum(b - a if b >= a else b - a + wrap for a, b, wrap in spent) / 1e6


def meter(device: torch.device) -> Meter | None:
    """The counter of this device, or None."""
    try:
        return NVML(device) if device.type == "cuda" else RAPL() if device.type == "cpu" else None
    except Exception:  # no package, no driver, no rights, an old GPU: each library raises its own
        return None


def energy(answerer: Answerer, enter: Enter, asked: list[Asked], turns: Turns) -> dict[str, dict[str, Any]]:
    """``joules`` a question: a batch is answered again and again for a second, and what the whole device took
    meanwhile is shared out. The median of three turns; ``"unavailable"`` without a counter."""
    gauge = meter(answerer.model.device)
    if gauge is None:
        return {name: {"joules": UNAVAILABLE, "source": UNAVAILABLE} for name in enter}
    inputs = answerer.inputs(asked)

    def answered(number: int, name: str) -> dict[str, float]:
        with enter[name]():
            return {"joules": a_question(gauge, answerer, inputs, SECONDS)}

    seen = turns.take("energy", enter, TURNS, answered)
    joules = {name: [turn["joules"] for turn in each] for name, each in seen.items()}
    source = {"source": gauge.name, "batch": len(asked)}
    return {name: {"joules": median(each), "iqr_joules": spread(each)} | source for name, each in joules.items()}


def a_question(gauge: Meter, answerer: Answerer, inputs: Any, seconds: float) -> float:
    """Joules of one question, the batch answered for at least ``seconds``."""
    rounds = 0

    def run() -> None:
        nonlocal rounds
        until = time.perf_counter() + seconds
        while rounds == 0 or time.perf_counter() < until:
            answerer.generate(inputs)
            now(answerer.model.device)
            rounds += 1

    return gauge.measure(run) / (rounds * inputs["input_ids"].shape[0])
