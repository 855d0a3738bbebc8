"""Gemma 3 in vLLM: a picture is all its crops."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.model_executor.models import gemma3_mm
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.integrations.vllm.families.llava import FlatTower
from vtc.integrations.vllm.model import InALine, Ungraphed
from vtc.integrations.vllm.processor import fewer
from vtc.models.base import Place
from vtc.models.patches_to_tokens import square_tiles


@MULTIMODAL_REGISTRY.register_processor(
    fewer(gemma3_mm.Gemma3MultiModalProcessor),
    info=gemma3_mm.Gemma3ProcessingInfo,
    dummy_inputs=gemma3_mm.Gemma3DummyInputsBuilder,
)
class VtcGemma3ForConditionalGeneration(InALine, Ungraphed, FlatTower, gemma3_mm.Gemma3ForConditionalGeneration):
    def place(self, features: Tensor, inputs: dict[str, Any], index: int) -> Place:
        return square_tiles(len(features), int(inputs["num_patches"][index]))
