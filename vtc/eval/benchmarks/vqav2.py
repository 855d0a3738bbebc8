"""VQAv2 (CC BY 4.0): everyday questions about COCO pictures, ten human answers each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from vtc.eval.benchmarks import forms, register
from vtc.eval.benchmarks.base import Sample
from vtc.eval.benchmarks.public import SHORT, Public
from vtc.eval.metrics.vqa import vqa_accuracy


@register("vqav2")
@dataclass(frozen=True)
class VQAv2(Public):
    """Reported: the mean soft accuracy, also by answer type, with both sides always normalised (lmms-eval; LLaVA
    normalises what it submits). ``official``: as the official script, where "Yes" is wrong when all ten people wrote
    "yes". The answers of ``test`` and ``testdev`` are not public."""

    name: ClassVar[str] = "vqav2"
    hub: ClassVar[tuple[str, ...]] = ("lmms-lab/VQAv2", "lmms-lab-encoder/VQAv2")
    splits: ClassVar[tuple[str, ...]] = ("validation",)
    unlabelled: ClassVar[tuple[str, ...]] = ("test", "testdev")
    metric: ClassVar[str] = "VQA soft accuracy"
    columns: ClassVar[dict[str, forms.Form]] = {
        "question_id": forms.identity,
        "question": forms.text,
        "answers": forms.texts,
        "answer_type": forms.text,
        "image": forms.image,
    }

    official: bool = False

    def questions(self, row: forms.Row, number: int, where: str) -> list[Sample]:
        question = row["question"] + SHORT
        return [Sample(row["question_id"], question, row["answers"], (row["image"],), row["answer_type"], where=where)]

    def score(self, answer: str, sample: Sample) -> float:
        return vqa_accuracy(answer, sample.answers, always=not self.official)

    def credits(self, expected: Sequence[str]) -> dict[str, float]:
        return {answer: vqa_accuracy(answer, expected, always=not self.official) for answer in set(expected)}
