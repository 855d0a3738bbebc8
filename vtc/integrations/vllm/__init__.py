"""Fewer vision tokens in vLLM: models of its own, reduced behind the projector, with share exact.

One class a family over ``model.Reducing``; what is asked for is the key ``vtc`` of the model's config.
"""

from __future__ import annotations

ARCHITECTURES = {  # of transformers' configs -> the file of our class in families/, which is called Vtc and that
    "Gemma3ForConditionalGeneration": "gemma3",
    "Glm4vForConditionalGeneration": "glm4v",
    "Idefics3ForConditionalGeneration": "idefics3",
    "InternVLForConditionalGeneration": "internvl",
    "LlavaForConditionalGeneration": "llava",
    "LlavaNextForConditionalGeneration": "llava_next",
    "LlavaOnevisionForConditionalGeneration": "llava_next",
    "Mistral3ForConditionalGeneration": "mistral3",
    "Qwen2VLForConditionalGeneration": "qwen_vl",
    "Qwen2_5_VLForConditionalGeneration": "qwen_vl",
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
    "SmolVLMForConditionalGeneration": "idefics3",
}
IN_A_LINE = tuple(  # of these without M-RoPE
    name for name, file in ARCHITECTURES.items() if file not in ("glm4v", "qwen_vl", "qwen3_vl")
)


def register() -> None:
    """vLLM calls this in each of its processes, perhaps more than once. Imports no torch."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from vtc.integrations.vllm.settings import TableOfPositions

    known = ModelRegistry.get_supported_archs()
    for name, module in ARCHITECTURES.items():
        own = f"Vtc{name}"
        if own not in known:
            ModelRegistry.register_model(own, f"{__name__}.families.{module}:{own}")
        if name in IN_A_LINE:
            MODELS_CONFIG_MAP[own] = TableOfPositions
