"""Mistral 3 in vLLM: pictures of any size, a word behind each row of tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.model_executor.models import mistral3
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.integrations.vllm.model import InALine
from vtc.integrations.vllm.processor import fewer
from vtc.models.base import Place
from vtc.models.patches_to_tokens import raster_place


@MULTIMODAL_REGISTRY.register_processor(
    fewer(mistral3.Mistral3MultiModalProcessor),
    info=mistral3.Mistral3ProcessingInfo,
    dummy_inputs=mistral3.Mistral3DummyInputsBuilder,
)
class VtcMistral3ForConditionalGeneration(InALine, mistral3.Mistral3ForConditionalGeneration):
    def place(self, features: Tensor, inputs: dict[str, Any], index: int) -> Place:
        side = self.config.vision_config.patch_size * self.config.spatial_merge_size
        height, width = inputs["pixel_values"][index].shape[-2:]
        return raster_place(1, height // side, width // side)
