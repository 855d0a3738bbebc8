"""What the vision tower did for each modality: its attention as signals capture it, and how many tokens came out."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor

from vtc.engine.embedded import rows_of
from vtc.errors import NotReduced
from vtc.models.base import Family, TowerRun
from vtc.signals.base import Signal, TowerCall

PIXELS = ("pixel_values", "pixel_values_images", "pixel_values_videos")


class TowerCapture:
    """``runs``: what each modality's tower did last; ``running``: what runs now."""

    def __init__(self, family: Family):
        self.family = family
        self.runs: dict[str, TowerRun] = {}
        self.running: TowerRun | None = None

    def around(self, modality: str, arguments: dict[str, Any], call: Callable[[], Any]) -> Any:
        """Around ``get_image_features``: capture the tower's attention, note what came out."""
        if self.running is not None:  # Qwen3-VL reads a video through its picture path
            return call()
        run = self.running = TowerRun(modality, arguments)
        try:
            output = call()
        finally:
            self.running = None
        run.counts, run.output, run.rows = self.family.entries(output), _references(output), rows_of(output)
        for name in PIXELS:  # only their shapes are asked for from here on
            if isinstance(arguments.get(name), Tensor):
                arguments[name] = arguments[name].to("meta")
        self.runs[modality] = run
        return output

    def capture(self, signal: Signal, q: Tensor, k: Tensor, mask: Tensor | None, scale: float) -> None:
        """An attention call of a hooked tower layer."""
        if self.running is not None:
            kept = signal.capture(TowerCall(q, k, mask, scale, self.family.tower_cls))
            self.running.captured.setdefault(signal, []).append(kept)

    def adopt(self, features: dict[str, Any]) -> None:
        """Features computed before this forward: by a run we saw, or else only their lengths are known."""
        if features:
            self.runs = {m: r for m, r in self.runs.items() if features.get(m) is not None}
        for modality, output in features.items():
            run = self.runs.get(modality)
            if output is None or (run is not None and _same(run.output, output)):
                continue
            counts = self.family.entries(output)
            if run is not None and not run.used and sum(counts) < sum(run.counts):
                raise NotReduced(
                    f"this forward brings {sum(counts)} of the {sum(run.counts)} {modality} tokens just encoded: "
                    "chunked prefill would select tokens chunk by chunk; generate without prefill_chunk_size"
                )
            self.runs[modality] = TowerRun(modality, {}, counts)


def _references(output: Any) -> tuple[Any, Any]:
    """Weak references to features and to their first tensor: to know them again without keeping them."""
    pooled = getattr(output, "pooler_output", output)
    first = pooled if isinstance(pooled, Tensor) else pooled[0]
    return (lambda: None) if isinstance(output, (tuple, list)) else weakref.ref(output), weakref.ref(first)


def _same(ours: tuple[Any, Any] | None, theirs: Any) -> bool:
    """Whether ``theirs`` are the features we saw (beam search extends the object in place, hooks may rebuild it)."""
    if ours is None:
        return False
    pooled = getattr(theirs, "pooler_output", theirs)
    first = pooled if isinstance(pooled, Tensor) else pooled[0]
    return ours[0]() is theirs or ours[1]() is first
