"""Idefics3 and SmolVLM in vLLM: tiles with words between them, then the whole picture."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.model_executor.models import idefics3, smolvlm
from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.integrations.vllm.model import InALine, Ungraphed
from vtc.integrations.vllm.processor import fewer
from vtc.models.base import Place
from vtc.models.patches_to_tokens import square_tiles


class Tiled(InALine, Ungraphed):
    """Mixed in before both."""

    def place(self, features: Tensor, inputs: dict[str, Any], index: int) -> Place:
        return square_tiles(len(features), int(inputs["num_patches"][index]))


@MULTIMODAL_REGISTRY.register_processor(
    fewer(idefics3.Idefics3MultiModalProcessor),
    info=idefics3.Idefics3ProcessingInfo,
    dummy_inputs=idefics3.Idefics3DummyInputsBuilder,
)
class VtcIdefics3ForConditionalGeneration(Tiled, idefics3.Idefics3ForConditionalGeneration):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    fewer(smolvlm.SmolVLMMultiModalProcessor),
    info=smolvlm.SmolVLMProcessingInfo,
    dummy_inputs=smolvlm.SmolVLMDummyInputsBuilder,
)
class VtcSmolVLMForConditionalGeneration(Tiled, smolvlm.SmolVLMForConditionalGeneration):
    pass
