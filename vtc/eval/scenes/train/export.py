"""The trained model as a plain folder that transformers loads: fp16 weights, processor, tokenizer."""

import copy
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging

from vtc.eval.scenes.train.model import Architecture
from vtc.eval.scenes.vocabulary import BOS, EOS, IDS, PAD
from vtc.files.folders import replacing

CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image> {% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, pads on the left."""
    words = Tokenizer(models.WordLevel(dict(IDS), unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        padding_side="left",
        extra_special_tokens={"image_token": "<image>", "video_token": "<unk>"},
        model_max_length=512,
        chat_template=CHAT_TEMPLATE,
    )


def export(kind: Architecture, model: PreTrainedModel, out: Path) -> None:
    """Writes the folder, which appears whole."""
    logging.disable_progress_bar()
    half = copy.deepcopy(model)
    half.half()
    settings = half.generation_config
    settings.eos_token_id, settings.pad_token_id, settings.bos_token_id = EOS, PAD, BOS
    with replacing(out) as fresh:
        half.save_pretrained(fresh)
        kind.processor(tokenizer()).save_pretrained(fresh)
        for file in fresh.iterdir():
            file.chmod(0o644)
