"""LLaVA-NeXT and LLaVA-OneVision in vLLM: a small whole picture, then its tiles sewn together, with newline tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.model_executor.models import llava_next, llava_onevision
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.integrations.vllm.families.llava import FlatTower
from vtc.integrations.vllm.model import InALine
from vtc.integrations.vllm.processor import fewer
from vtc.models.base import Place
from vtc.models.llava_next import anyres_place


class AnyRes(InALine, FlatTower):
    """Mixed in before both."""

    def place(self, features: Tensor, inputs: dict[str, Any], index: int) -> Place:
        model: Any = self
        side = model.config.vision_config.image_size // model.config.vision_config.patch_size
        return anyres_place((features == model.image_newline).all(dim=1).cpu(), side, side)


@MULTIMODAL_REGISTRY.register_processor(
    fewer(llava_next.LlavaNextMultiModalProcessor),
    info=llava_next.LlavaNextProcessingInfo,
    dummy_inputs=llava_next.LlavaDummyInputsBuilder,
)
class VtcLlavaNextForConditionalGeneration(AnyRes, llava_next.LlavaNextForConditionalGeneration):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    fewer(llava_onevision.LlavaOnevisionMultiModalProcessor),
    info=llava_onevision.LlavaOnevisionProcessingInfo,
    dummy_inputs=llava_onevision.LlavaOnevisionDummyInputsBuilder,
)
class VtcLlavaOnevisionForConditionalGeneration(AnyRes, llava_onevision.LlavaOnevisionForConditionalGeneration):
    pass
