"""TextVQA: questions about text in pictures, ten human answers each; with and without the OCR tokens in the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from vtc.eval.benchmarks import forms, register
from vtc.eval.benchmarks.base import Sample
from vtc.eval.benchmarks.public import SHORT, Public
from vtc.eval.metrics.vqa import textvqa_accuracy


@register("textvqa")
@dataclass(frozen=True)
class TextVQA(Public):
    """Reported: the mean soft accuracy after EvalAI's normalisation, without OCR tokens as in lmms-eval."""

    name: ClassVar[str] = "textvqa"
    hub: ClassVar[tuple[str, ...]] = ("lmms-lab/textvqa", "lmms-lab-encoder/textvqa")
    splits: ClassVar[tuple[str, ...]] = ("validation", "train")
    unlabelled: ClassVar[tuple[str, ...]] = ("test",)
    metric: ClassVar[str] = "VQA soft accuracy (EvalAI)"
    ocr: ClassVar[bool] = False
    columns: ClassVar[dict[str, forms.Form]] = {
        "question_id": forms.identity,
        "question": forms.text,
        "answers": forms.texts,
        "image": forms.image,
        "ocr_tokens": forms.optional_texts,
    }

    def questions(self, row: forms.Row, number: int, where: str) -> list[Sample]:
        seen = f"\nReference OCR token: {', '.join(row['ocr_tokens'])}" if self.ocr else ""
        question = row["question"].capitalize() + seen + SHORT
        return [Sample(row["question_id"], question, row["answers"], (row["image"],), where=where)]

    def score(self, answer: str, sample: Sample) -> float:
        return textvqa_accuracy(answer, sample.answers)

    def credits(self, expected: Sequence[str]) -> dict[str, float]:
        return {answer: textvqa_accuracy(answer, expected) for answer in set(expected)}


@register("textvqa_ocr")
@dataclass(frozen=True)
class TextVQAOCR(TextVQA):
    """The same with the OCR tokens in the prompt, as LLaVA-1.5's published number has them."""

    name: ClassVar[str] = "textvqa_ocr"
    ocr: ClassVar[bool] = True
