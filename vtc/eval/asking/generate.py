"""Ask a model: prompts from a processor's chat template, greedy answers in left-padded batches."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

import vtc
from vtc.errors import DataError
from vtc.eval.asking.confidence import Chosen
from vtc.eval.asking.limits import check_pictures, check_texts, check_together
from vtc.eval.benchmarks import Benchmark, Sample

MARK = "<image>"  # where a picture stands in a question


@dataclass(frozen=True)
class Asked:
    """A sample ready to be asked: its decoded pictures and its prompt."""

    sample: Sample
    pictures: list[Image.Image]
    prompt: str


class Answerer:
    """One model and its processor. ``template`` wraps the question, like ``"{question} Answer in one word."``."""

    def __init__(self, model: Any, processor: Any, frame: str, template: str = "{question}", max_new_tokens: int = 16):
        check_template(template)
        self.model, self.processor = model, processor
        self.frame, self.template, self.max_new_tokens = frame, template, max_new_tokens
        self.pad = getattr(processor, "tokenizer", processor).pad_token_id

    def ready(self, sample: Sample, benchmark: Benchmark) -> Asked:
        """Load the pictures and build the prompt. Raises ``DataError``."""
        if sample.error:
            raise DataError(sample.error)
        check_texts(sample)
        check_together(benchmark.pixels(sample), sample.where)
        pictures = benchmark.pictures(sample)
        check_pictures((picture.size for picture in pictures), self.processor, sample.where)
        return Asked(sample, pictures, self.prompt(sample.question, len(pictures), sample.where))

    def prompt(self, question: str, pictures: int, where: str = "") -> str:
        """The text the processor gets. Pictures stand before the question, or where it says ``<image>``."""
        parts = split_marks(self.template.replace("{question}", question), pictures, self.processor, where)
        if getattr(self.processor, "chat_template", None):
            return self.chat([{"role": "user", "content": content(parts)}], pictures, where)
        token = getattr(self.processor, "image_token", MARK)
        text = self.frame.replace("{question}", f" {token} ".join(parts))
        return re.sub(" +", " ", text).strip()

    def chat(self, messages: list[dict[str, Any]], pictures: int, where: str = "") -> str:
        """The prompt of a conversation, by the processor's chat template. Raises ``DataError`` when a picture has no
        place in it."""
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        if pictures and not any(text.count(mark) == pictures for mark in marks(self.processor)):
            raise DataError(
                f"{where}: the processor's chat template did not place {pictures} picture(s); fix the template"
            )
        return text

    def inputs(self, asked: list[Asked]) -> Any:
        """The batch the model gets, padded on the left, on the model's device and in its dtype."""
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        if len(asked) > 1 and tokenizer.pad_token_id is None:
            raise DataError(
                "the tokenizer has no padding token; set processor.tokenizer.pad_token, or use --batch-size 1"
            )
        prompts = [a.prompt for a in asked]
        pictures = [a.pictures for a in asked if a.pictures]
        bos = getattr(tokenizer, "bos_token", None)
        batch = self.processor(
            text=prompts,
            images=pictures or None,
            padding=len(asked) > 1,
            padding_side="left",
            add_special_tokens=not (bos and prompts[0].startswith(bos)),
            return_tensors="pt",
        )
        return batch.to(self.model.device, dtype=self.model.dtype)

    @torch.no_grad()
    def prefill(self, inputs: Any) -> None:
        """One forward over the prompts that fills a cache and computes the last logits only, as ``generate`` begins."""
        self.model(**inputs, use_cache=True, logits_to_keep=1)

    @torch.no_grad()
    def generate(self, inputs: Any, **options: Any) -> torch.Tensor:
        """``[B, n]``: the new tokens; greedy where ``options`` (of transformers' ``generate``) say nothing else."""
        plain = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
        plain |= {"max_new_tokens": self.max_new_tokens, "pad_token_id": self.pad}
        rows = self.model.generate(**inputs, **{**plain, **options})
        return rows[:, inputs["input_ids"].shape[1] :]

    def decode(self, new: torch.Tensor) -> list[str]:
        """The texts of new tokens, one a row."""
        return self.processor.batch_decode(new, skip_special_tokens=True)

    def answers(self, inputs: Any) -> list[str]:
        """Greedy answers, one a row."""
        return [text for text, _ in self.replies(inputs)]

    def replies(self, inputs: Any) -> list[tuple[str, float]]:
        """Greedy answers, one a row, each with its probability."""
        chosen = Chosen()
        new = self.generate(inputs, logits_processor=[chosen])
        texts = [text.strip() for text in self.decode(new)]
        return list(zip(texts, chosen.probability(new, self.model.generation_config.eos_token_id), strict=True))

    def vision(self, inputs: Any) -> torch.Tensor:
        """``[B, n]``, bool: where the placeholders of pictures stand."""
        config = self.model.config
        token = getattr(config, "image_token_id", None)
        token = getattr(config, "image_token_index", None) if token is None else token
        return inputs["input_ids"] == (-1 if token is None else token)

    def vision_rows(self, inputs: Any) -> list[int]:
        """Placeholders of each prompt: the vision tokens it costs the unpatched model."""
        return self.vision(inputs).sum(1).tolist()

    def spent(self, asked: list[Asked], inputs: Any, beams: int = 1) -> list[float]:
        """Layer-averaged vision tokens of each prompt, as the last prefill ran it."""
        if vtc.patch_of(self.model) is None or not any(a.pictures for a in asked):
            return [float(n) for n in self.vision_rows(inputs)]
        rows = [0.0] * len(asked)
        for picture in vtc.report(self.model).pictures:
            rows[picture.prompt // beams] += picture.average / beams
        return rows


def content(parts: list[str]) -> list[dict[str, str]]:
    """A user's turn: a picture between two parts."""
    turn: list[dict[str, str]] = []
    for n, part in enumerate(parts):
        turn += [{"type": "image"}] if n else []
        turn += [{"type": "text", "text": part.strip()}] if part.strip() else []
    return turn


def check_template(template: str) -> None:
    if "{question}" not in template:
        raise DataError(f"prompt {template!r} has no {{question}}; write it where the question goes")


def marks(processor: Any) -> set[str]:
    """The texts that a processor replaces by pictures."""
    names = ("image_token", "boi_token", "fake_image_token", "start_image_token")
    return {MARK, *(t for name in names if isinstance(t := getattr(processor, name, None), str) and t)}


def split_marks(question: str, pictures: int, processor: Any, where: str) -> list[str]:
    """The texts before, between and after the pictures: the question cut at its ``<image>`` marks.

    Without marks all pictures come first. Raises ``DataError`` when marks and pictures differ in number.
    """
    if strange := sorted(mark for mark in marks(processor) if mark != MARK and mark in question):
        raise DataError(f"{where}: the question holds {strange[0]!r}, the model's own mark; write {MARK} for a picture")
    parts = question.split(MARK)
    if len(parts) == 1:
        return [""] * pictures + parts
    if len(parts) - 1 != pictures:
        raise DataError(
            f"{where}: {len(parts) - 1} {MARK} in the question and {pictures} picture(s); write one for each, or none"
        )
    return parts
