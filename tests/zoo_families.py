"""Tiny random models, one builder a family: ``BUILDERS[name](layers) -> model``. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable

import transformers as tf
from torch import nn

VOCAB, IMAGE, VIDEO = 160, 150, 151
START, END = 152, 153  # around a picture

Builder = Callable[[int], nn.Module]
BUILDERS: dict[str, Builder] = {}


def family(builder: Builder) -> Builder:
    """Decorator: the builder of the family it is named after."""
    BUILDERS[builder.__name__] = builder
    return builder


def text(kind: str | None, layers: int, **more) -> dict:
    """The language model's configuration."""
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 2048}
    named = {"model_type": kind} if kind else {}
    return {**named, **sizes, **ends, "num_hidden_layers": layers, **more}


def tower(kind: str | None = None, layers: int = 3, size: int = 24, **more) -> dict:
    """The vision tower's configuration: ``size / 4`` patches a side."""
    named = {"model_type": kind} if kind else {}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers, "num_attention_heads": 4}
    return {**named, **sizes, "image_size": size, "patch_size": 4, **more}


def clip() -> dict:
    return tower("clip_vision_model", projection_dim=32)


def siglip() -> dict:
    return tower("siglip_vision_model", vision_use_head=False)


def sliding(layers: int) -> list[str]:
    """Every other layer sees a window only."""
    return ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]


@family
def llava(layers):
    config = tf.LlavaConfig(vision_config=clip(), text_config=text("llama", layers), image_token_index=IMAGE)
    return tf.LlavaForConditionalGeneration(config)


@family
def llava_pixtral(layers):
    config = tf.LlavaConfig(
        vision_config=tower("pixtral", layers=2, size=32),
        text_config=text("llama", layers),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return tf.LlavaForConditionalGeneration(config)


@family
def vipllava(layers):
    config = tf.VipLlavaConfig(
        vision_config=clip(),
        text_config=text("llama", layers),
        image_token_index=IMAGE,
        vision_feature_layers=[-2, -3],
    )
    return tf.VipLlavaForConditionalGeneration(config)


PINPOINTS = [[24, 48], [48, 24], [48, 48]]


@family
def llava_next(layers):
    config = tf.LlavaNextConfig(
        vision_config=clip(),
        text_config=text("llama", layers),
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
    )
    return tf.LlavaNextForConditionalGeneration(config)


@family
def llava_next_video(layers):
    config = tf.LlavaNextVideoConfig(
        vision_config=clip(),
        text_config=text("llama", layers),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
    )
    return tf.LlavaNextVideoForConditionalGeneration(config)


@family
def llava_onevision(layers):
    config = tf.LlavaOnevisionConfig(
        vision_config=siglip(),
        text_config=text("qwen2", layers),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
    )
    return tf.LlavaOnevisionForConditionalGeneration(config)


@family
def video_llava(layers):
    config = tf.VideoLlavaConfig(
        vision_config=clip(),
        text_config=text("llama", layers),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )
    return tf.VideoLlavaForConditionalGeneration(config)


def qwen_ids() -> dict:
    return {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    }


def qwen_tower(depth: int = 2, **more) -> dict:
    sizes = {
        "depth": depth,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "patch_size": 4,
        "out_hidden_size": 64,
    }
    return {**sizes, "in_channels": 3, "spatial_merge_size": 2, "temporal_patch_size": 2, **more}


def rope(**more) -> dict:
    return {"rope_parameters": dict(rope_type="default", mrope_section=[2, 3, 3], rope_theta=10000.0, **more)}


@family
def qwen2_vl(layers):
    vision = {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 64,
        "num_heads": 4,
        "mlp_ratio": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
    }
    config = tf.Qwen2VLConfig(text_config=text(None, layers, **rope()), vision_config=vision, **qwen_ids())
    return tf.Qwen2VLForConditionalGeneration(config)


@family
def qwen2_5_vl(layers):
    vision = qwen_tower(window_size=16, fullatt_block_indexes=[1])
    config = tf.Qwen2_5_VLConfig(text_config=text(None, layers, **rope()), vision_config=vision, **qwen_ids())
    return tf.Qwen2_5_VLForConditionalGeneration(config)


@family
def qwen3_vl(layers):
    vision = qwen_tower(4, num_position_embeddings=64, deepstack_visual_indexes=[0, 1, 2])
    language = text(None, layers, head_dim=16, **rope())
    config = tf.Qwen3VLConfig(text_config=language, vision_config=vision, **qwen_ids())
    return tf.Qwen3VLForConditionalGeneration(config)


@family
def qwen3_5(layers):
    kinds = ["full_attention" if i % 2 else "linear_attention" for i in range(layers)]
    linear = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    }
    turns = rope(partial_rotary_factor=0.5, mrope_interleaved=True)
    language = text(None, layers, head_dim=32, layer_types=kinds, **linear, **turns)
    vision = qwen_tower(num_position_embeddings=64)
    config = tf.Qwen3_5Config(text_config=language, vision_config=vision, **qwen_ids())
    return tf.Qwen3_5ForConditionalGeneration(config)


@family
def glm4v(layers):
    turns = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    config = tf.Glm4vConfig(
        text_config=text(None, layers, rope_parameters=turns),
        vision_config=qwen_tower(image_size=32),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=START,
        image_end_token_id=END,
        video_start_token_id=154,
        video_end_token_id=155,
    )
    return tf.Glm4vForConditionalGeneration(config)


@family
def internvl(layers):
    vision = tower(layers=2, size=32) | {"image_size": [32, 32], "patch_size": [4, 4]}
    config = tf.InternVLConfig(
        vision_config=vision,
        text_config=text("qwen2", layers),
        image_token_id=IMAGE,
        image_seq_length=16,
        downsample_ratio=0.5,
    )
    return tf.InternVLForConditionalGeneration(config)


@family
def idefics3(layers):
    vision = tower(layers=2, size=32)
    config = tf.Idefics3Config(
        vision_config=vision, text_config=text("llama", layers), image_token_id=IMAGE, scale_factor=2
    )
    return tf.Idefics3ForConditionalGeneration(config)


@family
def smolvlm(layers):
    vision = tower(layers=2, size=32)
    config = tf.SmolVLMConfig(
        vision_config=vision, text_config=text("llama", layers), image_token_id=IMAGE, scale_factor=2
    )
    return tf.SmolVLMForConditionalGeneration(config)


@family
def paligemma(layers):
    config = tf.PaliGemmaConfig(
        vision_config=siglip(),
        text_config=text("gemma", layers, head_dim=16),
        image_token_index=IMAGE,
        projection_dim=64,
    )
    return tf.PaliGemmaForConditionalGeneration(config)


@family
def gemma3(layers):
    language = text(None, layers, head_dim=16, sliding_window=16, layer_types=sliding(layers))
    config = tf.Gemma3Config(
        vision_config=siglip(),
        text_config=language,
        image_token_index=IMAGE,
        image_token_id=IMAGE,
        mm_tokens_per_image=9,
        boi_token_index=START,
        eoi_token_index=END,
    )
    return tf.Gemma3ForConditionalGeneration(config)


@family
def mistral3(layers):
    config = tf.Mistral3Config(
        vision_config=tower("pixtral", layers=2, size=32),
        text_config=text("mistral", layers, head_dim=16),
        image_token_index=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    return tf.Mistral3ForConditionalGeneration(config)


def cohere(layers: int) -> dict:
    return text("cohere2", layers, head_dim=16, sliding_window=16, layer_types=sliding(layers))


@family
def aya_vision(layers):
    config = tf.AyaVisionConfig(
        vision_config=siglip(),
        text_config=cohere(layers),
        image_token_index=IMAGE,
        downsample_factor=2,
        adapter_layer_norm_eps=1e-6,
    )
    return tf.AyaVisionForConditionalGeneration(config)


@family
def cohere2_vision(layers):
    config = tf.Cohere2VisionConfig(
        vision_config=siglip(),
        text_config=cohere(layers),
        image_token_id=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=32,
    )
    return tf.Cohere2VisionForConditionalGeneration(config)


@family
def deepseek_vl(layers):
    config = tf.DeepseekVLConfig(text_config=text("llama", layers), vision_config=siglip(), image_token_id=IMAGE)
    return tf.DeepseekVLForConditionalGeneration(config)


@family
def janus(layers):
    vision = tower("janus_vision_model", layers=2, projection_dim=64, mlp_ratio=2.0, num_image_tokens=36, depth=2)
    codes = {"embed_dim": 8, "num_embeddings": 16, "latent_channels": 8, "double_latent": False, "base_channels": 32}
    codes |= {"channel_multiplier": [1, 1], "num_res_blocks": 1, "num_patches": 6, "out_channels": 3}
    codes |= {"projection_dim": 64, "image_token_embed_dim": 64}
    config = tf.JanusConfig(
        text_config=text("llama", layers), vision_config=vision, vq_config=codes, image_token_id=IMAGE
    )
    return tf.JanusForConditionalGeneration(config)


@family
def ovis2(layers):
    vision = tower(layers=2, hidden_stride=2, vocab_size=32, num_visual_indicator_tokens=5)
    config = tf.Ovis2Config(
        vision_config=vision,
        text_config=text("qwen2", layers),
        image_token_id=IMAGE,
        visual_indicator_token_ids=[154, 155, 156, 157, 158],
        vocab_size=VOCAB,
        hidden_size=64,
    )
    return tf.Ovis2ForConditionalGeneration(config)


@family
def perception_lm(layers):
    vit = {"embed_dim": 32, "img_size": [24, 24], "depth": 2, "patch_size": 4, "num_heads": 4, "ref_feat_shape": [6, 6]}
    vit |= {"global_pool": "", "use_post_transformer_norm": False, "init_values": 0.1}
    vision = {
        "model_type": "timm_wrapper",
        "architecture": "vit_pe_core_large_patch14_336",
        "do_pooling": False,
        "num_classes": 32,
        "global_pool": "map",
        "model_args": vit,
    }
    config = tf.PerceptionLMConfig(
        vision_config=vision,
        text_config=text("llama", layers),
        projector_pooling_ratio=2,
        vision_use_cls_token=True,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    return tf.PerceptionLMForConditionalGeneration(config)


@family
def got_ocr2(layers):
    vision = {
        "hidden_size": 32,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 64,
    }
    vision |= {"patch_size": 4, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 48}
    config = tf.GotOcr2Config(
        vision_config=vision, text_config=text("qwen2", layers), image_token_index=IMAGE, image_seq_length=16
    )
    config.image_token_id = IMAGE
    return tf.GotOcr2ForConditionalGeneration(config)


@family
def aria(layers):
    config = tf.AriaConfig(
        vision_config=tower("idefics3_vision"),
        text_config=text("aria_text", layers, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
        image_token_index=IMAGE,
        projector_patch_to_query_dict={36: 9},
    )
    return tf.AriaForConditionalGeneration(config)


@family
def mllama(layers):
    turns = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    vision = tower(attention_heads=4, num_global_layers=2, vision_output_dim=96, intermediate_layers_indices=[0, 1])
    vision |= {"max_num_tiles": 1, "supported_aspect_ratios": [[1, 1]]}
    config = tf.MllamaConfig(
        vision_config=vision,
        text_config=text(None, layers, cross_attention_layers=[1, 3], **turns),
        image_token_index=IMAGE,
    )
    return tf.MllamaForConditionalGeneration(config)


def qformer() -> dict:
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return sizes | {"num_attention_heads": 4, "encoder_hidden_size": 32}


@family
def blip2(layers):
    language = {"model_type": "opt", "vocab_size": VOCAB, "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": layers}
    language |= {"num_attention_heads": 4, "max_position_embeddings": 512, "word_embed_proj_dim": 64, "pad_token_id": 0}
    config = tf.Blip2Config(
        vision_config=tower(layers=2),
        qformer_config=qformer(),
        text_config=language,
        image_token_index=IMAGE,
        num_query_tokens=8,
    )
    return tf.Blip2ForConditionalGeneration(config)


@family
def instructblip(layers):
    config = tf.InstructBlipConfig(
        vision_config=tower(layers=2),
        qformer_config=qformer(),
        text_config=text("llama", layers),
        image_token_index=IMAGE,
        num_query_tokens=8,
    )
    return tf.InstructBlipForConditionalGeneration(config)


@family
def kosmos2(layers):
    language = {"vocab_size": VOCAB, "max_position_embeddings": 512, "embed_dim": 64, "layers": layers, "ffn_dim": 96}
    language |= {"attention_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = tf.Kosmos2Config(text_config=language, vision_config=tower(layers=2), latent_query_num=8)
    return tf.Kosmos2ForConditionalGeneration(config)
