"""Fewer vision tokens in vLLM: models of its own, reduced behind the projector, with share exact.

One class a family over ``model.Reducing``; what is asked for is the key ``vtc`` of the model's config.
"""

from __future__ import annotations

BACKEND = "backend"
# Of transformers' configs -> the file of our class in families/: over vLLM's own model of the family, or (BACKEND) over
# transformers' model with vLLM's attention in it.
ARCHITECTURES = {
    "AyaVisionForConditionalGeneration": BACKEND,
    "Cohere2VisionForConditionalGeneration": BACKEND,
    "Gemma3ForConditionalGeneration": "gemma3",
    "Glm4vForConditionalGeneration": "glm4v",
    "Glm4vMoeForConditionalGeneration": "glm4v",
    "Idefics3ForConditionalGeneration": "idefics3",
    "InternVLForConditionalGeneration": "internvl",
    "LlavaForConditionalGeneration": "llava",
    "LlavaNextForConditionalGeneration": "llava_next",
    "LlavaNextVideoForConditionalGeneration": BACKEND,
    "LlavaOnevisionForConditionalGeneration": "llava_next",
    "Mistral3ForConditionalGeneration": "mistral3",
    "Qwen2VLForConditionalGeneration": "qwen_vl",
    "Qwen2_5_VLForConditionalGeneration": "qwen_vl",
    "Qwen3VLForConditionalGeneration": "qwen3_vl",
    "SmolVLMForConditionalGeneration": "idefics3",
    "VipLlavaForConditionalGeneration": BACKEND,
}
IN_A_LINE = tuple(  # of these without M-RoPE
    name for name, file in ARCHITECTURES.items() if file not in ("glm4v", "qwen_vl", "qwen3_vl")
)
UNCOUNTED = "its processor does not count placeholders, which vLLM asks of transformers' code"
ONLY_OURS = {  # and why these are not served by transformers' code
    "Glm4vMoeForConditionalGeneration": "its experts were not tried there",
    "Qwen3VLForConditionalGeneration": "vLLM drops its DeepStack there",
    "SmolVLMForConditionalGeneration": UNCOUNTED,
}
SEES_THE_TOWER = (  # over vLLM's own model; transformers' code lets all be seen
    "LlavaForConditionalGeneration",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
)

NOT_SERVED = {  # of the families that vtc patches, and why
    "AriaForConditionalGeneration": "not tried",
    "DeepseekVLForConditionalGeneration": UNCOUNTED,
    "Glm46VForConditionalGeneration": "not tried",
    "GotOcr2ForConditionalGeneration": UNCOUNTED,
    "JanusForConditionalGeneration": UNCOUNTED,
    "Ovis2ForConditionalGeneration": UNCOUNTED,
    "PaliGemmaForConditionalGeneration": "its prompt sees ahead, and vLLM on the CPU does not: not compared",
    "PerceptionLMForConditionalGeneration": "vLLM cannot tell whose picture a tile is",
    "Qwen3VLMoeForConditionalGeneration": "vLLM reads its experts otherwise than transformers 5.19 writes them",
    "Qwen3_5ForConditionalGeneration": "its recurrent layers run on the CPU in bfloat16 alone: not compared",
    "Qwen3_5MoeForConditionalGeneration": "its recurrent layers run on the CPU in bfloat16 alone: not compared",
    "VideoLlavaForConditionalGeneration": UNCOUNTED,
}


def own(name: str, tower: bool = False) -> str:
    """Our architecture for one of transformers'. tower: for a method that looks at the tower."""
    backed = ARCHITECTURES[name] == BACKEND or (tower and name not in SEES_THE_TOWER and name not in ONLY_OURS)
    return f"VtcBacked{name}" if backed else f"Vtc{name}"


def classes() -> dict[str, str]:
    """Each of our architectures, and where its class is: ``module:Class``."""
    found = {}
    for name, file in ARCHITECTURES.items():
        if file != BACKEND:
            found[f"Vtc{name}"] = f"{__name__}.families.{file}:Vtc{name}"
        if name not in ONLY_OURS:
            turned = "VtcBackendInALine" if name in IN_A_LINE else "VtcBackend"
            found[f"VtcBacked{name}"] = f"{__name__}.families.{BACKEND}:{turned}"
    return found


def plain(name: str) -> str:
    """The architecture of transformers behind one of ours."""
    return name.removeprefix("Vtc").removeprefix("Backed")


def register() -> None:
    """vLLM calls this in each of its processes, perhaps more than once. Imports no torch."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from vtc.integrations.vllm.settings import TableOfPositions

    known = ModelRegistry.get_supported_archs()
    for name, where in classes().items():
        if name not in known:
            ModelRegistry.register_model(name, where)
        if plain(name) in IN_A_LINE:
            MODELS_CONFIG_MAP[name] = TableOfPositions
