"""Finding the parts of a VLM without knowing its family."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from vtc.errors import UnsupportedModel

TOWERS = ("vision_tower", "visual", "vision_model", "vision_encoder", "image_tower")
SPECIAL = ("class_embedding", "cls_token", "class_token")  # parameters that are a tower's CLS token


def unwrapped(model: Any) -> Any:
    """The transformers model inside ``torch.compile``, data-parallel and PEFT wrappers. Raises ``UnsupportedModel`` for
    what is no model at all."""
    if not issubclass(type(model), nn.Module):
        raise UnsupportedModel(
            f"{repr(model) if isinstance(model, str) else type(model).__name__} is no model; load one first, with "
            "AutoModelForImageTextToText.from_pretrained(...) or vtc.load(folder)"
        )
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            model = model.module
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            return model


def base_of(model: Any) -> Any:
    """The module that places picture features into placeholders."""
    base = getattr(model, "base_model", model)
    if hasattr(base, "get_image_features") and not _is_dual_encoder(base):
        return base
    raise UnsupportedModel(
        f"{type(model).__name__} puts no picture features into its prompt (no get_image_features beside a decoder); "
        "vtc reduces vision-language models such as LLaVA, Qwen-VL, InternVL, Idefics3 or Gemma 3"
    )


def _is_dual_encoder(base: nn.Module) -> bool:
    """CLIP and its like have ``get_image_features`` too, beside ``get_text_features``, and no decoder."""
    return hasattr(base, "get_text_features")


def decoder_of(base: Any) -> Any:
    """The text model: the part of ``base`` that has the decoder layers."""
    decoder = base.get_decoder()
    for part in (decoder, getattr(decoder, "model", None), getattr(decoder, "decoder", None)):
        if part is not None and part is not base and isinstance(getattr(part, "layers", None), nn.ModuleList):
            return part
    raise UnsupportedModel(f"{type(base).__name__}: its decoder layers were not found; add a family file to vtc/models")


def token_ids_of(config: Any) -> dict[str, int]:
    """Placeholder ids by modality."""
    ids: dict[str, int] = {}
    for modality in ("image", "video"):
        for name in (f"{modality}_token_id", f"{modality}_token_index"):
            value = getattr(config, name, None)
            if isinstance(value, int) and value >= 0:
                ids.setdefault(modality, value)
    if "image" not in ids:
        raise UnsupportedModel(f"{config.model_type} has no image_token_id in its config; set it, or use another model")
    return ids


def tower_of(base: nn.Module, names: tuple[str, ...] = TOWERS) -> nn.Module:
    """The vision tower."""
    for name in names:
        if isinstance(getattr(base, name, None), nn.Module):
            return getattr(base, name)
    raise UnsupportedModel(f"{type(base).__name__}: its vision tower was not found; add a family file to vtc/models")


def calls_interface(module: nn.Module) -> bool:
    """Whether the module calls transformers' attention interface, where signals are captured."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def attention_of(layer: nn.Module) -> nn.Module | None:
    """The one attention module of a layer, or None where it has none or several."""
    found = [module for module in layer.modules() if calls_interface(module)]
    return found[0] if len(found) == 1 else None


def attention_layers(tower: nn.Module) -> list[nn.Module]:
    """The attention modules of the tower's longest stack of layers; empty where they cannot be seen."""
    stacks = [m for m in tower.modules() if isinstance(m, nn.ModuleList) and len(m)]
    for stack in sorted(stacks, key=len, reverse=True):
        found = [module for module in map(attention_of, stack) if module is not None]
        if len(found) == len(stack):
            return found
    return []


def layers_of(tower: nn.Module, kinds: tuple[str, ...]) -> list[nn.Module]:
    """The tower's longest stack, where all its layers are of one of ``kinds``; else empty."""
    stacks = [m for m in tower.modules() if isinstance(m, nn.ModuleList) and len(m)]
    longest = max(stacks, key=len, default=nn.ModuleList())
    return list(longest) if all(type(layer).__name__ in kinds for layer in longest) else []


def special_tokens(tower: nn.Module) -> int:
    """How many special tokens lead the tower's sequence: CLS and registers."""
    count = 0
    for name, parameter in tower.named_parameters():
        last = name.rsplit(".", 1)[-1]
        if last in SPECIAL:
            count += 1
        elif last == "register_tokens":
            count += parameter.shape[-2]
    return count


def has_resampler(base: nn.Module, known: list[nn.Module]) -> bool:
    """Whether something beside the ``known`` towers and decoder attends (Q-formers, resamplers): then no patch belongs
    to one token."""
    inside = {id(module) for part in known for module in part.modules()}
    return any(
        isinstance(module, nn.MultiheadAttention) or calls_interface(module)
        for module in base.modules()
        if id(module) not in inside
    )
