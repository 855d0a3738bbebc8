"""The model: a small but genuine LLaVA, and the heads that only training sees."""

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from ..draw import PATCH, SIZE
from ..vocabulary import BOS, EOS, IMAGE, PAD, VOCABULARY
from .labels import COLOR_NAMES, KINDS, PICTURE_LABELS

WIDTH = 128
TOWER_LAYERS, DECODER_LAYERS = 5, 8
TOKENS = (SIZE // PATCH) ** 2


def build() -> LlavaForConditionalGeneration:
    """CLIP tower 5 x 128, two-layer projector, Llama 8 x 128; untrained."""
    tower = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=TOWER_LAYERS,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=WIDTH,
        hidden_act="gelu_pytorch_tanh",
    )
    decoder = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=DECODER_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    config = LlavaConfig(
        vision_config=tower,
        text_config=decoder,
        image_token_index=IMAGE,
        image_seq_length=TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
    )
    return LlavaForConditionalGeneration(config)


class TowerHeads(nn.Module):
    """Reads the dense labels off the tower's features; thrown away after training."""

    def __init__(self) -> None:
        super().__init__()
        self.kind = nn.Linear(WIDTH, len(KINDS))
        self.color = nn.Linear(WIDTH, len(COLOR_NAMES))
        self.middle = nn.Linear(WIDTH, 1)
        self.place = nn.Linear(WIDTH, 2)
        self.present = nn.Linear(WIDTH, len(PICTURE_LABELS))


def normalise(pixels: Tensor) -> Tensor:
    """uint8 [I, H, W, 3] -> float [I, 3, H, W] in [-1, 1], as the image processor does."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def tower_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states of tower layer -2 (CLS first) and the pooled CLS of the last layer."""
    out = model.model.vision_tower(pixel_values=normalise(pixels), output_hidden_states=True)
    return out.hidden_states[-2], out.pooler_output


def parameter_count(module: nn.Module) -> float:
    """Parameters, in millions."""
    return sum(p.numel() for p in module.parameters()) / 1e6


def autocast() -> torch.autocast:
    """bfloat16 for the matrix products."""
    return torch.autocast("cpu", torch.bfloat16)
