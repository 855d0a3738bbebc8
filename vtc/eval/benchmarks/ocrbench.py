"""OCRBench: a thousand questions about text in pictures, of ten types."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from vtc.eval.benchmarks import forms, register
from vtc.eval.benchmarks.base import Sample
from vtc.eval.benchmarks.public import Public
from vtc.eval.metrics.text import ocr_match

FORMULAS = "HME100k"  # the data set of handwritten formulas, compared with case and without blanks
PARTS = {
    "Scene Text-centric VQA": "scene_vqa",
    "Doc-oriented VQA": "doc_vqa",
    "Key Information Extraction": "kie",
    "Handwritten Mathematical Expression Recognition": "hmer",
}


@register("ocrbench")
@dataclass(frozen=True)
class OCRBench(Public):
    """Reported: the score, which is the number of hits (of 1,000), and its five parts: text recognition of 300, scene
    VQA, document VQA and key information extraction of 200, handwritten formulas of 100."""

    name: ClassVar[str] = "ocrbench"
    hub: ClassVar[tuple[str, ...]] = ("echo840/OCRBench",)
    max_new_tokens: ClassVar[int] = 128
    metric: ClassVar[str] = "hits: an expected text is in the answer"
    columns: ClassVar[dict[str, forms.Form]] = {
        "dataset": forms.text,
        "question": forms.text,
        "question_type": forms.text,
        "answer": forms.texts,
        "image": forms.image,
    }

    def questions(self, row: forms.Row, number: int, where: str) -> list[Sample]:
        kind, rule = row["question_type"], row["dataset"]
        return [Sample(str(number), row["question"], row["answer"], (row["image"],), kind, rule=rule, where=where)]

    def score(self, answer: str, sample: Sample) -> float:
        return ocr_match(answer, sample.answers, formula=sample.rule == FORMULAS)

    def aggregate(self, rows: Iterable[dict[str, Any]]) -> dict[str, float]:
        hits = dict.fromkeys(("score", "text_recognition", *PARTS.values()), 0.0)
        for row in rows:
            hits["score"] += row["score"]
            hits[PARTS.get(row["type"], "text_recognition")] += row["score"]
        return hits
