"""The model that ships: a small but genuine LLaVA. CLIP tower 5 x 128, two-layer projector, Llama 8 x 128."""

from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from vtc.eval.scenes.draw import PATCH, SIZE
from vtc.eval.scenes.train.architectures import register
from vtc.eval.scenes.train.model import DECODER_LAYERS, TOKENS, WIDTH, Architecture, normalise
from vtc.eval.scenes.vocabulary import BOS, EOS, IMAGE, PAD, VOCABULARY


@register("llava")
class Llava(Architecture):
    """The tower's last layer serves the CLS token only, as in LLaVA."""

    name: ClassVar[str] = "llava"
    layers: ClassVar[int] = DECODER_LAYERS

    def build(self) -> LlavaForConditionalGeneration:
        tower = CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=5,
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
            num_hidden_layers=self.layers,
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

    def tower(self, model: Any) -> nn.Module:
        return model.model.vision_tower

    def projector(self, model: Any) -> nn.Module:
        return model.model.multi_modal_projector

    def features(self, model: Any, pixels: Tensor) -> Tensor:
        return self.states(model, pixels)[0][:, 1:]

    def project(self, model: Any, features: Tensor) -> Tensor:
        return model.model.multi_modal_projector(features)

    def described(self, model: Any, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        hidden, pooled = self.states(model, pixels)
        return hidden[:, 1:], (pooled, hidden[:, 0])

    def states(self, model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states of tower layer -2 (CLS first) and the pooled CLS of the last layer."""
        out = model.model.vision_tower(pixel_values=normalise(pixels), output_hidden_states=True)
        return out.hidden_states[-2], out.pooler_output

    def positions(self, order: Tensor) -> Tensor:
        return order

    def processor(self, tokenizer: Tokenizer) -> LlavaProcessor:
        """Pillow image processor and tokenizer; a picture becomes 196 placeholders."""
        pictures = CLIPImageProcessorPil(
            do_resize=True,
            size={"height": SIZE, "width": SIZE},
            do_center_crop=False,
            crop_size={"height": SIZE, "width": SIZE},
            do_normalize=True,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
            do_convert_rgb=True,
        )
        return LlavaProcessor(
            image_processor=pictures,
            tokenizer=tokenizer,
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            image_token="<image>",
            num_additional_image_tokens=1,
            chat_template=tokenizer.chat_template,
        )
