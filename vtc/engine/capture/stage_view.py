"""What a stage sees of one forward: the other side of ``vtc.signals.base.View``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from vtc.engine.state import Prefill
from vtc.engine.text_rows import text_rows
from vtc.errors import NotReduced
from vtc.kernels.gather import gather_rows
from vtc.models.base import Family
from vtc.signals.base import DecoderHook, Signal, TextRows
from vtc.tokens import VisionTokens


@dataclass
class StageView:
    """Before decoder layer ``layer`` of the forward ``p``; ``run_ahead`` has a signal captured of that very layer."""

    p: Prefill
    family: Family
    layer: int
    tokens: VisionTokens
    position: Tensor
    states: Tensor
    run_ahead: Callable[[Signal], Tensor] | None = None

    def signals(self, asked: tuple[Signal, ...]) -> dict[Signal, Tensor]:
        return {signal: signal.read(self) for signal in asked}

    @cached_property
    def last(self) -> Tensor:
        return self.p.last_row(self.p.last_cut).to(self.states.device)

    @cached_property
    def text(self) -> TextRows:
        rows, ends = text_rows(self.p), self.p.ends
        if ends is None:
            return TextRows(rows.rows, rows.inside, rows.valid, self.p.layout.text_count)
        asked = rows.rows < ends.to(rows.rows.device)[:, None]
        asked = asked if rows.valid is None else asked & rows.valid
        return TextRows(rows.rows, rows.inside, asked, asked.sum(dim=1).tolist())

    @property
    def picture_end(self) -> Tensor:
        return self.p.layout.row.amax(dim=1)

    def captured(self, signal: Signal) -> Tensor:
        hook = signal.hook(self.layer)
        if not isinstance(hook, DecoderHook):
            raise TypeError(f"{signal} has no hook in the decoder before layer {self.layer}, so nothing is kept of it")
        if hook.layer == self.layer and self.run_ahead is not None:
            return self.run_ahead(signal.source).to(self.states.device)
        key = (hook.layer, signal.source)
        if key not in self.p.captured:
            raise NotReduced(
                f"{signal} was not captured in layer {hook.layer}: its attention did not run through the patch"
            )
        return self.p.captured[key].to(self.states.device)

    def tower(self, signal: Signal) -> Tensor:
        values = self.p.layout.signal(self.family, signal.source, self.states.device)
        for cut in self.p.cuts:  # a later stage sees the values of what is left
            values = gather_rows(values, cut.reduction.anchor.clamp(min=0))
        return values
