"""How long choosing and merging tokens takes, signals included."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch


@dataclass
class Stopwatch:
    """Milliseconds in selection: CUDA events (read only when asked), else the wall clock."""

    cuda: bool
    spans: list = field(default_factory=list)

    def __enter__(self) -> Stopwatch:
        self.spans.append((self._now(), None))
        return self

    def __exit__(self, *exc: object) -> None:
        self.spans[-1] = (self.spans[-1][0], self._now())

    def _now(self):
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def milliseconds(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
            return sum(a.elapsed_time(b) for a, b in self.spans)
        return sum(1000 * (b - a) for a, b in self.spans)
