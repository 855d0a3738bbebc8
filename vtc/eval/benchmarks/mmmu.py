"""MMMU: college questions of thirty subjects, with options or open, with pictures inside the text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from vtc.errors import DataError
from vtc.eval.benchmarks import forms, register
from vtc.eval.benchmarks.base import Sample
from vtc.eval.benchmarks.public import LETTER, SHORT, Public, letter, option_lines
from vtc.eval.metrics import mean, means
from vtc.eval.metrics.mmmu import drawn_letter, mmmu_letter, open_score

MARK = re.compile(r"<image (\d)>")


@register("mmmu")
@dataclass(frozen=True)
class MMMU(Public):
    """Reported: accuracy over all questions of ``validation``. Pictures stand where the text or an option has
    ``<image k>``. Where a reply names no option a letter is drawn, as the public scorers do, from ``seed`` and the
    question's id."""

    name: ClassVar[str] = "mmmu"
    hub: ClassVar[tuple[str, ...]] = ("lmms-lab/MMMU", "lmms-lab-encoder/MMMU")
    splits: ClassVar[tuple[str, ...]] = ("validation", "dev")
    unlabelled: ClassVar[tuple[str, ...]] = ("test",)
    metric: ClassVar[str] = "accuracy of the letter, or of the open answer"
    columns: ClassVar[dict[str, forms.Form]] = {
        "id": forms.identity,
        "question": forms.text,
        "options": forms.optional_texts,
        "answer": forms.texts,
        "question_type": forms.text,
        **{f"image_{n}": forms.optional_image for n in range(1, 8)},
    }

    def questions(self, row: forms.Row, number: int, where: str) -> list[Sample]:
        options, answers = row["options"], row["answer"]
        if row["question_type"] == "multiple-choice":
            answers = (letter(answers[0], options, where),)
            text = f"{row['question']}\n{option_lines(options)}\n{LETTER}"
        else:
            options = ()
            text = f"{row['question']}\n{SHORT}"
        named = [f"image_{n}" for n in MARK.findall(text)]
        if missing := [name for name in named if row.get(name) is None]:
            raise DataError(f"{where}: the question shows {missing[0]}, and that column is empty")
        images = tuple(row[name] for name in named or self.columns if name.startswith("image_") and row[name])
        subject = "_".join(row["id"].split("_")[1:-1])
        kind = row["question_type"]
        return [Sample(row["id"], MARK.sub("<image>", text), answers, images, subject, kind, where, options=options)]

    def score(self, answer: str, sample: Sample) -> float:
        if not sample.options:
            return open_score(answer, sample.answers)
        found = mmmu_letter(answer, sample.options) or drawn_letter(sample.options, f"{self.seed}:{sample.id}")
        return float(found == sample.answers[0])

    def aggregate(self, rows: Iterable[dict[str, Any]]) -> dict[str, float]:
        scored = [(row["group"], row["score"]) for row in rows]
        return {"accuracy": mean(score for _, score in scored)} | means(scored)
