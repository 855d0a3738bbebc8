"""SEED-Bench: questions with four options about pictures, and about frames of videos."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from vtc.eval.benchmarks import forms, register
from vtc.eval.benchmarks.base import Sample
from vtc.eval.benchmarks.public import LETTER, Public, letter, option_lines
from vtc.eval.metrics import mean
from vtc.eval.metrics.options import seed_letter


@register("seedbench")
@dataclass(frozen=True)
class SEEDBench(Public):
    """Reported: ``seed_image``, accuracy on the picture part; ``seed_all`` has the videos too, a picture a frame."""

    name: ClassVar[str] = "seedbench"
    hub: ClassVar[tuple[str, ...]] = ("lmms-lab/SEED-Bench", "lmms-lab-encoder/SEED-Bench")
    metric: ClassVar[str] = "accuracy of the option's letter"
    columns: ClassVar[dict[str, forms.Form]] = {
        "question_id": forms.identity,
        "question": forms.text,
        **{f"choice_{name}": forms.text for name in "abcd"},
        "answer": forms.text,
        "data_type": forms.text,
        "question_type_id": forms.whole,
        "image": forms.images,
    }

    def questions(self, row: forms.Row, number: int, where: str) -> list[Sample]:
        options = tuple(row[f"choice_{name}"] for name in "abcd")
        question = f"{row['question']}\n{option_lines(options)}{LETTER}"
        answer = letter(row["answer"], options, where)
        kind = f"{row['data_type']} {row['question_type_id']}"
        return [
            Sample(
                row["question_id"], question, (answer,), row["image"], kind, row["data_type"], where, options=options
            )
        ]

    def score(self, answer: str, sample: Sample) -> float:
        return float(seed_letter(answer) == sample.answers[0])

    def aggregate(self, rows: Iterable[dict[str, Any]]) -> dict[str, float]:
        scored = [(row["group"], row["score"]) for row in rows]
        parts = {f"seed_{kind}": mean(s for k, s in scored if k == kind) for kind in ("image", "video")}
        return parts | {"seed_all": mean(score for _, score in scored)}
