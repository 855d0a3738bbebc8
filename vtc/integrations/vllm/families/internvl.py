"""InternVL in vLLM, as transformers has it: a picture is all its tiles."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.model_executor.models import interns1
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.integrations.vllm.model import InALine
from vtc.integrations.vllm.processor import fewer
from vtc.models.base import Place
from vtc.models.patches_to_tokens import square_tiles


@MULTIMODAL_REGISTRY.register_processor(
    fewer(interns1.InternS1MultiModalProcessor),
    info=interns1.InternS1ProcessingInfo,
    dummy_inputs=interns1.InternS1DummyInputsBuilder,
)
class VtcInternVLForConditionalGeneration(InALine, interns1.InternS1ForConditionalGeneration):
    def place(self, features: Tensor, inputs: dict[str, Any], index: int) -> Place:
        return square_tiles(len(features), int(inputs["image_num_patches"][index]))
