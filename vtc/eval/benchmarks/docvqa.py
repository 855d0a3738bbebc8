"""DocVQA (Apache-2.0): questions about scanned documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vtc.eval.benchmarks import forms, register
from vtc.eval.benchmarks.base import Sample
from vtc.eval.benchmarks.public import SHORT, Public
from vtc.eval.metrics.reading import anls


@register("docvqa")
@dataclass(frozen=True)
class DocVQA(Public):
    """Reported: ANLS with threshold one half. The answers of ``test`` are not public."""

    name: ClassVar[str] = "docvqa"
    hub: ClassVar[tuple[str, ...]] = ("lmms-lab/DocVQA", "lmms-lab-encoder/DocVQA")
    config: ClassVar[str] = "DocVQA"
    splits: ClassVar[tuple[str, ...]] = ("validation",)
    unlabelled: ClassVar[tuple[str, ...]] = ("test",)
    max_new_tokens: ClassVar[int] = 32
    metric: ClassVar[str] = "ANLS, threshold 0.5"
    columns: ClassVar[dict[str, forms.Form]] = {
        "questionId": forms.identity,
        "question": forms.text,
        "question_types": forms.optional_texts,
        "answers": forms.texts,
        "image": forms.image,
    }

    def questions(self, row: forms.Row, number: int, where: str) -> list[Sample]:
        kind = (row["question_types"] or ("",))[0]
        return [Sample(row["questionId"], row["question"] + SHORT, row["answers"], (row["image"],), kind, where=where)]

    def score(self, answer: str, sample: Sample) -> float:
        return anls(answer, sample.answers)
