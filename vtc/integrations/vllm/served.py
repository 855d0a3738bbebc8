"""Which methods vLLM can serve: those that cut at the decoder's input by the picture alone, because a picture's
features are cached before its prompt is known."""

from __future__ import annotations

import dataclasses

from vtc.budget.spend import EQUAL
from vtc.errors import VTCError
from vtc.methods._spelling import spell
from vtc.methods.base import Method
from vtc.signals.base import TowerHook


def served(method: Method) -> Method:
    """``method``, or what of it is served: the default is its first cut alone. Raises ``VTCError``."""
    if method.name == "adaptive" and method.freezes:
        return dataclasses.replace(method, layer=None)  # type: ignore[call-arg]
    stages, name = method.stages(), spell(method)
    if len(stages) > 1 or stages[0].layer != 0 or method.freezes or method.rest:
        raise refused(name, "its later layers cut, or rest, and vLLM runs every row through every layer")
    if method.reduces_keys or method.skips_layers:
        raise refused(name, "it changes what single layers see, and vLLM's layers are one")
    if method.spend != EQUAL:
        raise refused(name, "a picture's tokens are counted before its features are there, and it spends by need")
    for signal in method.signals(0):
        if signal.asks:
            raise refused(name, f"it looks at the question ({signal.words()}), and a picture's features are cached")
        if not isinstance(signal.hook(0), TowerHook):
            raise refused(name, f"what it looks at ({signal.words()}) is not captured in vLLM's models")
    return method


def refused(name: str, why: str) -> VTCError:
    return VTCError(f"{name} cannot be served by vLLM: {why}; use divprune+share, or another method of docs/serving.md")
