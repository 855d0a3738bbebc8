"""VizWiz-VQA: pictures and questions of blind people, some without an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from vtc.eval.benchmarks import forms, register
from vtc.eval.benchmarks.base import Sample
from vtc.eval.benchmarks.public import SHORT, Public
from vtc.eval.metrics.vqa import textvqa_accuracy

UNANSWERABLE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."


@register("vizwiz")
@dataclass(frozen=True)
class VizWiz(Public):
    """Reported: the mean soft accuracy after EvalAI's normalisation. The answers of ``test`` are not public."""

    name: ClassVar[str] = "vizwiz"
    hub: ClassVar[tuple[str, ...]] = ("lmms-lab/VizWiz-VQA", "lmms-lab-encoder/VizWiz-VQA")
    splits: ClassVar[tuple[str, ...]] = ("val",)
    unlabelled: ClassVar[tuple[str, ...]] = ("test",)
    metric: ClassVar[str] = "VQA soft accuracy (EvalAI)"
    columns: ClassVar[dict[str, forms.Form]] = {
        "question_id": forms.identity,
        "question": forms.text,
        "answers": forms.texts,
        "category": forms.optional_text,
        "image": forms.image,
    }

    def questions(self, row: forms.Row, number: int, where: str) -> list[Sample]:
        question = row["question"].capitalize() + UNANSWERABLE + SHORT
        return [Sample(row["question_id"], question, row["answers"], (row["image"],), row["category"], where=where)]

    def score(self, answer: str, sample: Sample) -> float:
        return textvqa_accuracy(answer, sample.answers)

    def credits(self, expected: Sequence[str]) -> dict[str, float]:
        return {answer: textvqa_accuracy(answer, expected) for answer in set(expected)}
