"""LLaVA in vLLM."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from vllm.model_executor.models import llava
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.integrations.vllm.model import Reducing
from vtc.integrations.vllm.positions import in_a_line
from vtc.integrations.vllm.processor import fewer
from vtc.integrations.vllm.tower import Seen


@MULTIMODAL_REGISTRY.register_processor(
    fewer(llava.LlavaMultiModalProcessor), info=llava.LlavaProcessingInfo, dummy_inputs=llava.LlavaDummyInputsBuilder
)
class VtcLlavaForConditionalGeneration(Reducing, llava.LlavaForConditionalGeneration):
    supports_mrope: ClassVar[Literal[True]] = True  # the table of positions, not the rotation

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        signals = self.method.signals(0)
        layers = self.vision_tower.vision_model.encoder.layers if signals else []
        self.seen = Seen(layers, self.config.vision_config.num_hidden_layers, signals)

    def _process_image_input(self, image_input: Any) -> list[Tensor]:
        pictures = list(super()._process_image_input(image_input))
        places = [torch.arange(len(one))[:, None].expand(-1, 3) for one in pictures]
        return self.reduce(pictures, places, [square(len(one)) for one in pictures], self.seen.values)

    def count(self, feature: Any) -> int:
        vision = self.config.vision_config
        return (vision.image_size // vision.patch_size) ** 2

    def whole_positions(self, tokens: list[int], features: list[Any]) -> tuple[Tensor, int]:
        return in_a_line(tokens, features)

    def own_positions(self, positions: Tensor) -> Tensor:
        return positions[0] if positions.ndim == 2 else positions

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Also of checkpoints whose CLIP tower is flat, as transformers 5 writes them."""
        return super().load_weights((nested(name), weight) for name, weight in weights)


def square(count: int) -> Tensor:
    """``[N, 3]``: (t, y, x) of a picture of ``side * side`` tokens."""
    side = round(count**0.5)
    index = torch.arange(count)
    return torch.stack([torch.zeros_like(index), index // side, index % side], dim=1)


def nested(name: str) -> str:
    """A weight's name as vLLM has it."""
    head, tower, rest = name.partition("vision_tower.")
    return f"{head}{tower}vision_model.{rest}" if tower and not rest.startswith("vision_model.") else name
