"""ChartQA: questions about charts, half written by people, half generated."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from vtc.eval.benchmarks import forms, register
from vtc.eval.benchmarks.base import Sample
from vtc.eval.benchmarks.public import Public
from vtc.eval.metrics import mean, means
from vtc.eval.metrics.reading import relaxed_accuracy

ONE_WORD = "\nAnswer the question with a single word."


@register("chartqa")
@dataclass(frozen=True)
class ChartQA(Public):
    """Reported: relaxed accuracy (numbers within 5 %), overall and for each half."""

    name: ClassVar[str] = "chartqa"
    hub: ClassVar[tuple[str, ...]] = ("lmms-lab/ChartQA", "lmms-lab-encoder/ChartQA")
    metric: ClassVar[str] = "relaxed accuracy, 5 %"
    columns: ClassVar[dict[str, forms.Form]] = {
        "type": forms.text,
        "question": forms.text,
        "answer": forms.text,
        "image": forms.image,
    }

    def questions(self, row: forms.Row, number: int, where: str) -> list[Sample]:
        question = row["question"] + ONE_WORD
        return [Sample(str(number), question, (row["answer"],), (row["image"],), row["type"], where=where)]

    def score(self, answer: str, sample: Sample) -> float:
        return relaxed_accuracy(answer, sample.answers[0])

    def aggregate(self, rows: Iterable[dict[str, Any]]) -> dict[str, float]:
        scored = [(row["type"].removesuffix("_test"), row["score"]) for row in rows]
        return {"relaxed": mean(score for _, score in scored)} | means(scored)
