"""RefCOCO: the box of the object that an expression describes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from vtc.eval.benchmarks import forms, register
from vtc.eval.benchmarks.base import Sample
from vtc.eval.benchmarks.public import Public
from vtc.eval.data.images import load_any
from vtc.eval.metrics import mean
from vtc.eval.metrics.boxes import iou, parse_box, rescale

ASKED = "Please provide the bounding box coordinate of the region this sentence describes: "
HIT = 0.5


@register("refcoco")
@dataclass(frozen=True)
class RefCOCO(Public):
    """Reported: accuracy at IoU 0.5. The columns are those of the card of ``lmms-lab/RefCOCO``: ``answer`` is a list of
    expressions, each a question here; ``bbox`` is left, top, width, height in pixels. The prompt is LLaVA-1.5's.

    ``coordinates`` of a reply (left, top, right, bottom): ``unit`` (0 to 1 of the picture), ``thousand`` (0 to 1000) or
    ``pixels`` of the picture as it is stored.
    """

    name: ClassVar[str] = "refcoco"
    hub: ClassVar[tuple[str, ...]] = ("lmms-lab/RefCOCO", "lmms-lab-encoder/RefCOCO")
    splits: ClassVar[tuple[str, ...]] = ("val", "test", "testA", "testB")
    max_new_tokens: ClassVar[int] = 64
    metric: ClassVar[str] = "accuracy at IoU 0.5"
    columns: ClassVar[dict[str, forms.Form]] = {
        "question_id": forms.identity,
        "answer": forms.texts,
        "bbox": forms.box,
        "image": forms.image,
    }

    coordinates: str = "unit"

    def questions(self, row: forms.Row, number: int, where: str) -> list[Sample]:
        left, top, width, height = row["bbox"]
        size = load_any(row["image"], self.root, where=where).size
        gold = rescale((left, top, left + width, top + height), size, self.coordinates)
        text = f"[{', '.join(f'{value:.6f}' for value in gold)}]"
        return [
            Sample(f"{row['question_id']}:{n}", ASKED + phrase, (text,), (row["image"],), where=where)
            for n, phrase in enumerate(row["answer"])
        ]

    def score(self, answer: str, sample: Sample) -> float:
        return float(overlap(answer, sample.answers[0]) >= HIT)

    def aggregate(self, rows: Iterable[dict[str, Any]]) -> dict[str, float]:
        found = [overlap(row["answer"], row["expected"][0]) for row in rows]
        return {"acc@0.5": mean(float(v >= HIT) for v in found), "mean_iou": mean(found)}


def overlap(answer: str, gold: str) -> float:
    """IoU of the box in a reply with the right one; 0.0 where the reply has none."""
    found, right = parse_box(answer), parse_box(gold)
    return iou(found, right) if found and right else 0.0
