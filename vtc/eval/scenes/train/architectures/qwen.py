"""A second kind of model, to check on what was chosen on the first: a small but genuine Qwen2.5-VL.

No CLS token, window attention, 784 patches of 4 x 4 pixels merged 2 x 2 into 196 tokens, M-RoPE, grouped heads.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from vtc.eval.scenes.draw import PATCH, SIZE
from vtc.eval.scenes.train.architectures import register
from vtc.eval.scenes.train.labels import GRID
from vtc.eval.scenes.train.model import DECODER_LAYERS, START, TOKENS, WIDTH, Architecture, normalise
from vtc.eval.scenes.vocabulary import BOS, EOS, IMAGE, PAD, UNKNOWN, VOCABULARY

MERGE = 2
FINE = PATCH // MERGE
"""Height and width of a patch before merging, in pixels."""
TOWER_WIDTH = 64
FRAMES = 2
"""The tower reads pictures as two equal frames."""


@register("qwen")
class Qwen(Architecture):
    """Tower 4 x 64 with full attention in every second layer, the merger, Qwen2 8 x 128."""

    name: ClassVar[str] = "qwen"
    placed: ClassVar[bool] = False

    def build(self) -> Qwen2_5_VLForConditionalGeneration:
        tower = {
            "depth": 4,
            "hidden_size": TOWER_WIDTH,
            "intermediate_size": 3 * TOWER_WIDTH,
            "num_heads": 4,
            "patch_size": FINE,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": FRAMES,
            "window_size": SIZE // 2,
            "fullatt_block_indexes": [1, 3],
            "out_hidden_size": WIDTH,
        }
        decoder = {
            "vocab_size": len(VOCABULARY),
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": DECODER_LAYERS,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
            "pad_token_id": PAD,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
        }
        config = Qwen2_5_VLConfig(
            vision_config=tower,
            text_config=decoder,
            image_token_id=IMAGE,
            video_token_id=UNKNOWN,
            vision_start_token_id=BOS,
            vision_end_token_id=EOS,
            tie_word_embeddings=False,
        )
        return Qwen2_5_VLForConditionalGeneration(config)

    def tower(self, model: Any) -> nn.Module:
        return model.model.visual

    def projector(self, model: Any) -> nn.Module:
        return model.model.visual.merger

    def features(self, model: Any, pixels: Tensor) -> Tensor:
        """Four patches side by side, [I, 196, 4 x 64], in the order of the picture."""
        count = len(pixels)
        grid = torch.tensor([[1, SIZE // FINE, SIZE // FINE]]).expand(count, 3)
        states = model.model.visual(patches(pixels), grid_thw=grid).last_hidden_state
        units = states.reshape(count, TOKENS, MERGE**2 * TOWER_WIDTH)
        return units[:, window_order().argsort()]

    def project(self, model: Any, features: Tensor) -> Tensor:
        return model.model.visual.merger(features.reshape(-1, TOWER_WIDTH)).reshape(*features.shape[:2], WIDTH)

    def described(self, model: Any, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        tokens = self.project(model, self.features(model, pixels))
        return tokens, (tokens.mean(1),)

    def positions(self, order: Tensor) -> Tensor:
        """[B, L] -> [3, B, L]: time, row, column. What follows the picture goes on after its longer side."""
        place, seen, after = order - START, order >= START, order >= START + TOKENS
        text = torch.where(after, order - TOKENS + GRID, order)
        axes = torch.zeros_like(place), place // GRID, place % GRID
        return torch.stack([torch.where(seen & ~after, START + axis, text) for axis in axes])

    def processor(self, tokenizer: Tokenizer) -> Qwen2_5_VLProcessor:
        """Pillow image processor, the video processor that transformers insists on, and tokenizer."""
        settings: dict[str, Any] = {
            "patch_size": FINE,
            "merge_size": MERGE,
            "temporal_patch_size": FRAMES,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
        }
        pictures = Qwen2VLImageProcessorPil(min_pixels=SIZE**2, max_pixels=SIZE**2, **settings)
        videos = Qwen2VLVideoProcessor(**settings)
        return Qwen2_5_VLProcessor(pictures, tokenizer, videos, chat_template=tokenizer.chat_template)


def patches(pixels: Tensor) -> Tensor:
    """uint8 [I, H, W, 3] -> float [I x 784, 3 x 2 x 4 x 4]: four patches that merge stand side by side."""
    split = normalise(pixels).reshape(len(pixels), 3, GRID, MERGE, FINE, GRID, MERGE, FINE)
    still = split.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
    return still.expand(*still.shape[:6], FRAMES, FINE, FINE).reshape(-1, 3 * FRAMES * FINE**2)


def window_order() -> Tensor:
    """[196]: which token of the picture each token of the tower's output is: windows first, then rows in them."""
    half = GRID // 2
    places = torch.arange(TOKENS).reshape(2, half, 2, half)
    return places.permute(0, 2, 1, 3).flatten()
