"""Tiny random models of vLLM's families in folders, with tokenizer and processor: words are ``w4``, ``w5``, ..."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from tests.zoo import filled
from tests.zoo_families import BUILDERS, END, IMAGE, PINPOINTS, START, VIDEO, VOCAB

HEADS = 32  # width of a head: the least that vLLM's attention on the CPU has
QWEN = {"<|image_pad|>": IMAGE, "<|video_pad|>": VIDEO, "<|vision_start|>": START, "<|vision_end|>": END}
QWEN_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
TILED = {"<image>": IMAGE, "<fake_token_around_image>": START, "<global-img>": END, "\n": 149, "\n\n": 148}
TILED |= {f"<row_{i}_col_{j}>": 140 + 2 * i + j for i in (1, 2) for j in (1, 2)}
GLM = {"<|image|>": IMAGE, "<|video|>": VIDEO, "<|begin_of_image|>": START, "<|end_of_image|>": END}
GLM |= {"<|begin_of_video|>": 154, "<|end_of_video|>": 155}
GLM_PICTURE = "<|begin_of_image|><|image|><|end_of_image|>"
BIASED = {"attention_bias": True}  # transformers has it always, vLLM as the config says
PIXTRAL = {"[IMG]": IMAGE, "[IMG_BREAK]": START, "[IMG_END]": END}
ANYRES = dict(patch_size=4, vision_feature_select_strategy="default", num_additional_image_tokens=1)
PIXELS = {"shortest_edge": 16 * 16, "longest_edge": 48 * 48}
PATCHES = dict(patch_size=4, merge_size=2, temporal_patch_size=2)


@dataclass(frozen=True)
class Tiny:
    """processor: makes one of a tokenizer; marks: names of ids; roles: a tokenizer's own names of some of them;
    placeholder: of a picture in a prompt; text: what its decoder's config says besides; model: its builder, where the
    zoo has none."""

    architecture: str
    placeholder: str
    marks: dict[str, int]
    processor: Callable[[Any], Any]
    roles: dict[str, str] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    model: Callable[[int], Any] | None = None


def prompt(placeholder: str, pictures: int, seed: int = 0) -> str:
    draw = np.random.default_rng(seed)
    some = [" ".join(f"w{n}" for n in draw.integers(4, 130, 4)) for _ in range(pictures + 1)]
    return some[0] + "".join(f" {placeholder} {one}" for one in some[1:])


def glm4v_moe(layers: int) -> Any:
    """The first layer is dense."""
    experts = dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_shared_experts=1)
    experts |= dict(first_k_dense_replace=1, n_group=1, topk_group=1, norm_topk_prob=True, routed_scaling_factor=1.0)
    core = BUILDERS["glm4v"](layers).config.to_dict()
    text = core.pop("text_config") | experts | {"model_type": "glm4v_moe_text"}
    own = {"model_type", "architectures", "vision_config"}
    vision = core["vision_config"] | {"model_type": "glm4v_moe_vision"}
    config = tf.Glm4vMoeConfig(
        text_config=text, vision_config=vision, **{k: v for k, v in core.items() if k not in own}
    )
    return tf.Glm4vMoeForConditionalGeneration(config)


def square(size: int) -> dict[str, int]:
    return {"height": size, "width": size}


def clip(tokenizer: Any) -> Any:
    pixels = tf.CLIPImageProcessor(size={"shortest_edge": 24}, crop_size=square(24))
    return tf.LlavaProcessor(pixels, tokenizer, image_token="<image>", **ANYRES)


def next_(tokenizer: Any) -> Any:
    pixels = tf.LlavaNextImageProcessor(
        size={"shortest_edge": 24}, crop_size=square(24), image_grid_pinpoints=PINPOINTS
    )
    return tf.LlavaNextProcessor(pixels, tokenizer, image_token="<image>", **ANYRES)


def onevision(tokenizer: Any) -> Any:
    return tf.LlavaOnevisionProcessor(
        tf.LlavaOnevisionImageProcessor(size=square(24), image_grid_pinpoints=PINPOINTS),
        tokenizer,
        tf.LlavaOnevisionVideoProcessor(size=square(24)),
        num_image_tokens=36,
        vision_feature_select_strategy="full",
    )


def qwen2(tokenizer: Any) -> Any:
    pixels = tf.Qwen2VLImageProcessor(size=PIXELS, **PATCHES)
    return tf.Qwen2VLProcessor(pixels, tokenizer, tf.Qwen2VLVideoProcessor(size=PIXELS, **PATCHES))


def qwen3(tokenizer: Any) -> Any:
    pixels = tf.Qwen2VLImageProcessor(size=PIXELS, **PATCHES)
    return tf.Qwen3VLProcessor(pixels, tokenizer, tf.Qwen3VLVideoProcessor(size=PIXELS, **PATCHES))


def internvl(tokenizer: Any) -> Any:
    pixels = tf.GotOcr2ImageProcessor(size=square(32), crop_to_patches=True, min_patches=1, max_patches=3)
    return tf.InternVLProcessor(pixels, tokenizer, tf.InternVLVideoProcessor(size=square(32)), image_seq_length=16)


def idefics3(tokenizer: Any) -> Any:
    pixels = tf.Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return tf.Idefics3Processor(pixels, tokenizer, image_seq_len=16)


def smolvlm(tokenizer: Any) -> Any:
    pixels = tf.SmolVLMImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    frames = tf.SmolVLMVideoProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    return tf.SmolVLMProcessor(pixels, tokenizer, frames, image_seq_len=16)


def gemma3(tokenizer: Any) -> Any:
    return tf.Gemma3Processor(tf.Gemma3ImageProcessor(size=square(24)), tokenizer, image_seq_length=9)


def pixtral(tokenizer: Any) -> Any:
    pixels = tf.PixtralImageProcessor(size={"longest_edge": 32}, patch_size=square(4))
    return tf.PixtralProcessor(pixels, tokenizer, patch_size=4, spatial_merge_size=2)


def llava_pixtral(tokenizer: Any) -> Any:
    pixels = tf.PixtralImageProcessor(size={"longest_edge": 32}, patch_size=square(4))
    return tf.PixtralProcessor(pixels, tokenizer, patch_size=4)


def glm4v(tokenizer: Any) -> Any:
    pixels = tf.Glm4vImageProcessor(size=PIXELS, **PATCHES)
    return tf.Glm4vProcessor(pixels, tokenizer, tf.Glm4vVideoProcessor(size=PIXELS, **PATCHES))


FAMILIES = {
    "llava": Tiny("LlavaForConditionalGeneration", "<image>", {"<image>": IMAGE}, clip),
    "llava_next": Tiny("LlavaNextForConditionalGeneration", "<image>", {"<image>": IMAGE}, next_),
    "llava_onevision": Tiny(
        "LlavaOnevisionForConditionalGeneration", "<image>", {"<image>": IMAGE, "<video>": VIDEO}, onevision
    ),
    "qwen2_vl": Tiny("Qwen2VLForConditionalGeneration", QWEN_PICTURE, QWEN, qwen2),
    "qwen2_5_vl": Tiny("Qwen2_5_VLForConditionalGeneration", QWEN_PICTURE, QWEN, qwen2),
    "qwen3_vl": Tiny("Qwen3VLForConditionalGeneration", QWEN_PICTURE, QWEN, qwen3),
    "internvl": Tiny(
        "InternVLForConditionalGeneration",
        "<IMG_CONTEXT>",
        {"<IMG_CONTEXT>": IMAGE, "<video>": VIDEO, "<img>": START, "</img>": END},
        internvl,
        dict(
            start_image_token="<img>",
            end_image_token="</img>",
            context_image_token="<IMG_CONTEXT>",
            video_token="<video>",
        ),
    ),
    "idefics3": Tiny("Idefics3ForConditionalGeneration", "<image>", TILED, idefics3),
    "smolvlm": Tiny("SmolVLMForConditionalGeneration", "<image>", TILED, smolvlm),
    "gemma3": Tiny(
        "Gemma3ForConditionalGeneration",
        "<start_of_image>",
        {"<image_soft_token>": IMAGE, "<start_of_image>": START, "<end_of_image>": END}
        | {"\n" * n: 144 + n for n in (1, 2, 3, 4)},
        gemma3,
        dict(image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>"),
        {"sliding_window": 512},  # vLLM's windows count the rows that are there
    ),
    "llava_pixtral": Tiny("LlavaForConditionalGeneration", "[IMG]", PIXTRAL, llava_pixtral),
    "mistral3": Tiny("Mistral3ForConditionalGeneration", "[IMG]", PIXTRAL, pixtral),
    "glm4v": Tiny("Glm4vForConditionalGeneration", GLM_PICTURE, GLM, glm4v, text=BIASED),
    "glm4v_moe": Tiny(
        "Glm4vMoeForConditionalGeneration",
        GLM_PICTURE,
        GLM,
        glm4v,
        text={**BIASED, "use_qk_norm": False},
        model=glm4v_moe,
    ),
}


def save(name: str, folder: Path, tiny: Tiny | None = None) -> Tiny:
    """A model of this family, with all it needs, in ``folder``."""
    tiny = tiny or FAMILIES[name]
    config = (tiny.model or BUILDERS[name])(2).config
    text = config.get_text_config()
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = text.hidden_size // HEADS, 1, HEADS
    if "mrope_section" in (text.rope_parameters or {}):
        text.rope_parameters["mrope_section"] = [2 * n for n in text.rope_parameters["mrope_section"]]
        text.rope_parameters["mrope_interleaved"] = name == "qwen3_vl"  # transformers knows, vLLM is told
    for key, value in tiny.text.items():
        setattr(text, key, value)
    torch.manual_seed(0)
    model = filled(tf.AutoModelForImageTextToText.from_config(config))
    with torch.no_grad():  # a sure model tells nothing apart: 0.2 of the logits, of norms around 1 and around 0
        model.get_decoder().norm.weight -= 0.8
    model.save_pretrained(folder)
    tiny.processor(tokenizer(tiny)).save_pretrained(folder)
    return tiny


def tokenizer(tiny: Tiny) -> Any:
    names = {**{i: f"w{i}" for i in range(VOCAB)}, 0: "<pad>", 1: "<s>", 2: "</s>", 3: "<unk>"}
    names |= {i: mark for mark, i in tiny.marks.items()}
    core = Tokenizer(models.WordLevel({name: i for i, name in names.items()}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([AddedToken(mark, normalized=False) for mark in tiny.marks])
    ends = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    return tf.PreTrainedTokenizerFast(tokenizer_object=core, extra_special_tokens=tiny.roles, **ends)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(0, 255, (height, width, 3), dtype=np.uint8))
