"""Which attention modules are listened to, for the signals that a method asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from vtc.engine.capture.taps import Mask, tap
from vtc.engine.forward import Engine
from vtc.signals.signals import KeyNorm, RaterAttention, TextAttention, TextPivots, TowerAttention, TowerKeys


def taps(engine: Engine) -> Iterator[Callable[[], Any]]:
    """Tap one attention module after the other; gives what undoes each."""
    tower, decoder, raters, keys = set(), set(), set(), set()
    for layer, stage in engine.stage_at.items():
        for signal in engine.method.signals(stage):
            if isinstance(signal, (TowerAttention, TowerKeys)):
                tower.add(signal)
            elif isinstance(signal, TextAttention) and (engine.keys or engine.router):
                decoder |= set(range(layer - (signal.of == "previous"), engine.depth))
            elif isinstance(signal, TextAttention):
                decoder.add(layer - 1 if signal.of == "previous" else layer)
            elif isinstance(signal, RaterAttention):
                raters.add((layer - 1, signal))
            elif isinstance(signal, (KeyNorm, TextPivots)) and layer > 0:
                keys.add(layer - 1)
    family = engine.family
    for signal in sorted(tower, key=repr):
        towers = [family.tower_attention(signal.layer, modality) for modality in family.token_ids]
        for module in dict.fromkeys(towers):
            yield tap(module, partial(engine.listener.hear_tower, signal))
    for layer in sorted(decoder):
        yield tap(family.decoder_attention(layer), partial(hear_decoder, engine, layer))
    for layer, rated in sorted(raters, key=repr):
        yield tap(family.decoder_attention(layer), partial(hear_raters, engine, layer, rated))
    for layer in sorted(keys):
        yield tap(family.decoder_attention(layer), partial(hear_keys, engine, layer))


def hear_decoder(engine: Engine, layer: int, q: Tensor, k: Tensor, mask: Mask, scale: float) -> None:
    engine.listener.hear_decoder(engine.current, layer, q, k, mask, scale)


def hear_raters(
    engine: Engine, layer: int, signal: RaterAttention, q: Tensor, k: Tensor, mask: Mask, scale: float
) -> None:
    engine.listener.hear_raters(engine.current, layer, signal, q, k, mask, scale)


def hear_keys(engine: Engine, layer: int, q: Tensor, k: Tensor, mask: Mask, scale: float) -> None:
    engine.listener.hear_keys(engine.current, layer, k, q.shape[2])
