"""Qwen3-VL in vLLM. What its first layers add (DeepStack) lies behind a token's features and merges by its slots."""

from __future__ import annotations

from vllm.model_executor.models import qwen3_vl
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.integrations.vllm.families.qwen_vl import ReducingQwen
from vtc.integrations.vllm.processor import fewer


@MULTIMODAL_REGISTRY.register_processor(
    fewer(qwen3_vl.Qwen3VLMultiModalProcessor),
    info=qwen3_vl.Qwen3VLProcessingInfo,
    dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder,
)
class VtcQwen3VLForConditionalGeneration(ReducingQwen, qwen3_vl.Qwen3VLForConditionalGeneration):
    pass
