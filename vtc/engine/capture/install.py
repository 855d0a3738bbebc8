"""Which attention modules are to be hooked, for the signals that a method asks for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor, nn

from vtc.engine.attention.masks import Mask
from vtc.engine.capture.attention_hook import Capture
from vtc.engine.forward import Engine
from vtc.signals.base import DecoderHook, Signal, TowerHook


def hooks_of(engine: Engine) -> Iterator[tuple[nn.Module, Capture]]:
    """Each attention module that is to be hooked, and what captures its calls."""
    tower: dict[Signal, TowerHook] = {}
    decoder: dict[int, dict[Signal, None]] = {}  # layer -> signals, in the order they were asked for
    for layer, signal in engine.asked():
        hook = signal.hook(layer)
        if isinstance(hook, TowerHook):
            tower[signal.source] = hook
        elif isinstance(hook, DecoderHook):
            decoder.setdefault(hook.layer, {})[signal.source] = None
    family = engine.family
    for signal in sorted(tower, key=repr):
        towers = [family.tower_attention(tower[signal].layer, modality) for modality in family.token_ids]
        for module in dict.fromkeys(towers):
            yield module, partial(engine.tower.capture, signal)
    for layer in sorted(decoder):
        yield family.decoder_attention(layer), _captured(engine, layer, tuple(decoder[layer]))


def _captured(engine: Engine, layer: int, signals: tuple[Signal, ...]) -> Capture:
    def capture(q: Tensor, k: Tensor, mask: Mask, scale: float) -> None:
        engine.decoder.capture(engine.current, layer, signals, q, k, mask, scale)

    return capture
