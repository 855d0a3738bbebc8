"""Qwen2-VL and Qwen2.5-VL in vLLM."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.model_executor.models import qwen2_5_vl, qwen2_vl
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.integrations.vllm.model import Reducing, Ungraphed
from vtc.integrations.vllm.processor import fewer
from vtc.models.base import Place
from vtc.models.patches_to_tokens import raster_place


class ReducingQwen(Reducing, Ungraphed):
    """Mixed in before the Qwen-VL line: a token a merge unit, in reading order."""

    def place(self, features: Tensor, inputs: dict[str, Any], index: int) -> Place:
        t, h, w = inputs["image_grid_thw"][index].tolist()
        merge = self.config.vision_config.spatial_merge_size  # type: ignore[attr-defined]
        return raster_place(t, h // merge, w // merge)


@MULTIMODAL_REGISTRY.register_processor(
    fewer(qwen2_vl.Qwen2VLMultiModalProcessor),
    info=qwen2_vl.Qwen2VLProcessingInfo,
    dummy_inputs=qwen2_vl.Qwen2VLDummyInputsBuilder,
)
class VtcQwen2VLForConditionalGeneration(ReducingQwen, qwen2_vl.Qwen2VLForConditionalGeneration):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    fewer(qwen2_5_vl.Qwen2_5_VLMultiModalProcessor),
    info=qwen2_5_vl.Qwen2_5_VLProcessingInfo,
    dummy_inputs=qwen2_5_vl.Qwen2_5_VLDummyInputsBuilder,
)
class VtcQwen2_5_VLForConditionalGeneration(ReducingQwen, qwen2_5_vl.Qwen2_5_VLForConditionalGeneration):
    pass
