"""Tiny models that vLLM runs by transformers' own code."""

from __future__ import annotations

from typing import Any

import transformers as tf

from tests.integrations.vllm.zoo import ANYRES, Tiny, clip, square
from tests.zoo_families import END, IMAGE, PINPOINTS, START, VIDEO

ENDS = dict(image_token="<image>", boi_token="<boi>", eoi_token="<eoi>", img_line_break_token="<line>")
MARKS = {"<image>": IMAGE, "<video>": VIDEO, "<boi>": START, "<eoi>": END, "<line>": 158}
AYA = {"<image>": 147, "<|IMG_PATCH|>": IMAGE, "<|START_OF_IMG|>": START, "<|END_OF_IMG|>": END}
AYA |= {"<|IMG_LINE_BREAK|>": 158, "TILE_GLOBAL": 157} | {f"TILE_{n}": 140 + n for n in range(1, 5)}
COHERE = {"sliding_window": 512, "logit_scale": 1.0}  # transformers leaves the scale out


def aya(tokenizer: Any) -> Any:
    pixels = tf.GotOcr2ImageProcessor(size=square(24), crop_to_patches=True, min_patches=1, max_patches=3)
    return tf.AyaVisionProcessor(pixels, tokenizer, patch_size=4, img_size=24, downsample_factor=2)


def cohere2(tokenizer: Any) -> Any:
    pixels = tf.Cohere2VisionImageProcessor(size=square(24), patch_size=3, max_patches=3)
    return tf.Cohere2VisionProcessor(pixels, tokenizer)


def next_video(tokenizer: Any) -> Any:
    pixels = tf.LlavaNextImageProcessor(
        size={"shortest_edge": 24}, crop_size=square(24), image_grid_pinpoints=PINPOINTS
    )
    frames = tf.LlavaNextVideoVideoProcessor(size={"shortest_edge": 24}, crop_size=square(24))
    return tf.LlavaNextVideoProcessor(frames, pixels, tokenizer, **ANYRES)


def tiny(name: str, placeholder: str, marks: dict[str, int], processor: Any, **more: Any) -> Tiny:
    return Tiny(f"{name}ForConditionalGeneration", placeholder, marks, processor, **more)


BACKED = {
    "aya_vision": tiny("AyaVision", "<image>", AYA, aya, text=COHERE),
    "cohere2_vision": tiny("Cohere2Vision", "<image>", MARKS, cohere2, roles=ENDS, text=COHERE),
    "llava_next_video": tiny("LlavaNextVideo", "<image>", MARKS, next_video),
    "vipllava": tiny("VipLlava", "<image>", {"<image>": IMAGE}, clip),
}
