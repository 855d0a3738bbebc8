"""GLM-4V in vLLM, and its mixture of experts: as the Qwen-VL line."""

from __future__ import annotations

from vllm.model_executor.models import glm4_1v
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.integrations.vllm.families.qwen_vl import ReducingQwen
from vtc.integrations.vllm.processor import fewer


@MULTIMODAL_REGISTRY.register_processor(
    fewer(glm4_1v.Glm4vMultiModalProcessor),
    info=glm4_1v.Glm4vProcessingInfo,
    dummy_inputs=glm4_1v.Glm4vDummyInputsBuilder,
)
class VtcGlm4vForConditionalGeneration(ReducingQwen, glm4_1v.Glm4vForConditionalGeneration):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    fewer(glm4_1v.Glm4vMultiModalProcessor),
    info=glm4_1v.Glm4vProcessingInfo,
    dummy_inputs=glm4_1v.Glm4vDummyInputsBuilder,
)
class VtcGlm4vMoeForConditionalGeneration(ReducingQwen, glm4_1v.Glm4vMoeForConditionalGeneration):
    pass
