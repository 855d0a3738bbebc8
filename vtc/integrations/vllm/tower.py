"""What a method looks at in a CLIP tower of vLLM: q and k of one layer's attention, taken as they pass."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from vllm.distributed import tensor_model_parallel_all_gather

from vtc.signals.base import Signal, TowerCall, TowerHook


class Seen:
    """``values``: for each signal ``[T, n]`` or ``[T, n, d]`` of the last call of the tower, without its CLS token."""

    def __init__(self, layers: Any, depth: int, signals: tuple[Signal, ...]):
        self.values: dict[Signal, Tensor] = {}
        for signal in signals:
            layer = cast(TowerHook, signal.hook(0)).layer  # nothing else is served
            index = layer if isinstance(layer, int) else int(layer * depth)
            if index % depth >= len(layers):
                raise ValueError(
                    f"{signal.words()} is asked for, and vLLM builds the tower only up to the layer whose features are "
                    f"read, {len(layers)} of {depth}; use a method that looks at earlier layers, such as visionzip"
                )
            attention = layers[index % depth].self_attn
            attention.attn.register_forward_pre_hook(self._taking(signal, attention))

    def _taking(self, signal: Signal, attention: Any) -> Any:
        def take(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            q, k = (x.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for x in arguments[:2])
            if attention.tp_size > 1:  # each rank has its share of the heads
                q, k = (tensor_model_parallel_all_gather(x.contiguous(), dim=1) for x in (q, k))
            found = signal.capture(TowerCall(q=q, k=k, mask=None, scale=attention.scale, cls=1))
            self.values[signal] = found[:, 1:]

        return take
