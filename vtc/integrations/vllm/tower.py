"""What a method looks at in a tower of vLLM: q and k of one layer's attention, taken as they pass."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from vllm.distributed import tensor_model_parallel_all_gather

from vtc.signals.base import Signal, TowerCall, TowerHook


class Seen:
    """Of a CLIP tower. ``values``: for each signal ``[T, n]`` or ``[T, n, d]`` of the last call of the tower, without
    its CLS token."""

    def __init__(self, layers: Any, depth: int, signals: tuple[Signal, ...]):
        self.values: dict[Signal, Tensor] = {}
        for signal in signals:
            attention = layers[layer_of(signal, depth, len(layers))].self_attn
            attention.attn.register_forward_pre_hook(self._taking(signal, attention))

    def _taking(self, signal: Signal, attention: Any) -> Any:
        def take(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            q, k = (x.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for x in arguments[:2])
            if attention.tp_size > 1:
                q, k = every_head(q), every_head(k)
            found = signal.capture(TowerCall(q=q, k=k, mask=None, scale=attention.scale, cls=1))
            self.values[signal] = found[:, 1:]

        return take


class SeenPacked:
    """Of a tower of Qwen-VL, which packs pictures into one sequence, window by window. ``captured``: for each signal
    ``[1, n]`` or ``[1, n, d]`` of each window of the last call."""

    def __init__(self, blocks: Any, signals: tuple[Signal, ...]):
        self.captured: dict[Signal, list[Tensor]] = {}
        for signal in signals:
            attention = blocks[layer_of(signal, len(blocks), len(blocks))].attn
            attention.attn.register_forward_pre_hook(self._taking(signal, attention), with_kwargs=True)

    def _taking(self, signal: Signal, attention: Any) -> Any:
        def take(_: nn.Module, arguments: tuple, named: dict[str, Any]) -> None:
            q, k = (named[name].transpose(1, 2) for name in ("query", "key"))
            if attention.tp_size > 1:
                q, k = every_head(q), every_head(k)
            windows = [n for n in named["cu_seqlens"].diff().tolist() if n]
            parts = zip(q.split(windows, dim=2), k.split(windows, dim=2), strict=True)
            scale = attention.hidden_size_per_attention_head**-0.5
            self.captured[signal] = [
                signal.capture(TowerCall(q=a, k=b, mask=None, scale=scale, cls=0)) for a, b in parts
            ]

        return take


def layer_of(signal: Signal, depth: int, built: int) -> int:
    """The tower layer that a signal is captured in. Raises ``ValueError`` for one that vLLM does not build."""
    layer = cast(TowerHook, signal.hook(0)).layer  # nothing else is served
    index = (layer if isinstance(layer, int) else int(layer * depth)) % depth
    if index >= built:
        raise ValueError(
            f"{signal.words()} is asked for, and vLLM builds the tower only up to the layer whose features are read, "
            f"{built} of {depth}; use a method that looks at earlier layers, such as visionzip"
        )
    return index


def every_head(x: Tensor) -> Tensor:
    """``[T, H, n, d]`` of one rank's share of the heads."""
    return tensor_model_parallel_all_gather(x.contiguous(), dim=1)
