"""LLaVA in vLLM, and Pixtral, which is LLaVA on a tower that takes pictures of any size."""

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
        model: Any = self
        if hasattr(model.vision_tower, "vision_model"):
            weights = ((nested(name), weight) for name, weight in weights)
        return super().load_weights(weights)  # type: ignore[misc]


def processor(info: Any, *args: Any, **kwargs: Any) -> Any:
    """vLLM's for LLaVA, or that of models built on Pixtral's tower."""
    packed = isinstance(info, llava.PixtralHFProcessingInfo)
    own = llava.PixtralHFMultiModalProcessor if packed else llava.LlavaMultiModalProcessor
    return fewer(own)(info, *args, **kwargs)


@MULTIMODAL_REGISTRY.register_processor(
    processor, info=llava._build_llava_or_pixtral_hf_info, dummy_inputs=llava.LlavaDummyInputsBuilder
)
class VtcLlavaForConditionalGeneration(InALine, FlatTower, llava.LlavaForConditionalGeneration):
    def watch(self) -> None:
        signals = self.method.signals(0)
        if signals and self.config.vision_config.model_type != "clip_vision_model":
            return super().watch()
        layers = self.vision_tower.vision_model.encoder.layers if signals else []
        self.seen = Seen(layers, self.config.vision_config.num_hidden_layers, signals)

    def signals(self, inputs: dict[str, Any]) -> dict[Signal, Tensor]:
        return self.seen.values

    def place(self, features: Tensor, inputs: dict[str, Any], index: int) -> Place:
        if self.config.vision_config.model_type == "pixtral":
            patch = self.config.vision_config.patch_size
            height, width = inputs["pixel_values"][index].shape[-2:]
            return raster_place(1, height // patch, width // patch)
        side = isqrt(len(features))
        return raster_place(1, side, side, specials=len(features) - side**2)
