"""Families whose pictures this library cannot reduce, each with the reason and what works instead."""

from __future__ import annotations

from vtc.errors import UnsupportedModel

REASONS = {
    "mllama": "reads pictures by cross-attention, so no picture token ever enters its decoder",
    "idefics": "reads pictures by cross-attention, so no picture token ever enters its decoder",
    "blip-2": "places its 32 query tokens inside generate(), where nothing can be dropped",
    "instructblip": "places its 32 query tokens itself and could not be verified against a reference",
    "instructblipvideo": "places its query tokens itself and could not be verified against a reference",
    "kosmos-2": "has no picture placeholder id; it finds pictures by image_embeds_position_mask",
    "kosmos-2.5": "has no picture placeholder id; it finds pictures by image_embeds_position_mask",
}


def refuse(model_type: str) -> None:
    """Raise ``UnsupportedModel`` for a model type that is known not to work."""
    if model_type in REASONS:
        raise UnsupportedModel(
            f"{model_type} {REASONS[model_type]}; use a model that puts picture tokens into its prompt, such as LLaVA, "
            "Qwen-VL, InternVL, Idefics3 or Gemma 3"
        )
