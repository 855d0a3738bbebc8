"""LLaVA in vLLM."""

from __future__ import annotations

from collections.abc import Iterable
from math import isqrt
from typing import Any

from torch import Tensor
from vllm.model_executor.models import llava
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.integrations.vllm.model import InALine
from vtc.integrations.vllm.processor import fewer
from vtc.integrations.vllm.tower import Seen
from vtc.models.base import Place
from vtc.models.patches_to_tokens import raster_place
from vtc.signals.base import Signal


def nested(name: str) -> str:
    """A weight's name as vLLM has it."""
    head, tower, rest = name.partition("vision_tower.")
    return f"{head}{tower}vision_model.{rest}" if tower and not rest.startswith("vision_model.") else name


class FlatTower:
    """Mixed in between: reads checkpoints whose CLIP or SigLIP tower is flat, as transformers 5 writes them, too."""

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        return super().load_weights((nested(name), weight) for name, weight in weights)  # type: ignore[misc]


@MULTIMODAL_REGISTRY.register_processor(
    fewer(llava.LlavaMultiModalProcessor), info=llava.LlavaProcessingInfo, dummy_inputs=llava.LlavaDummyInputsBuilder
)
class VtcLlavaForConditionalGeneration(InALine, FlatTower, llava.LlavaForConditionalGeneration):
    def watch(self) -> None:
        signals = self.method.signals(0)
        layers = self.vision_tower.vision_model.encoder.layers if signals else []
        self.seen = Seen(layers, self.config.vision_config.num_hidden_layers, signals)

    def signals(self) -> dict[Signal, Tensor]:
        return self.seen.values

    def place(self, features: Tensor, inputs: dict[str, Any], index: int) -> Place:
        side = isqrt(len(features))
        return raster_place(1, side, side, specials=len(features) - side**2)
