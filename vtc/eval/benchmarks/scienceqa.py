"""ScienceQA, its questions with a picture: school questions with two to five options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vtc.errors import DataError
from vtc.eval.benchmarks import forms, register
from vtc.eval.benchmarks.base import Sample
from vtc.eval.benchmarks.public import LETTER, Public, option_lines
from vtc.eval.metrics.options import scienceqa_score


@register("scienceqa")
@dataclass(frozen=True)
class ScienceQA(Public):
    """Reported: accuracy on ScienceQA-IMG, the letter read as lmms-eval does."""

    name: ClassVar[str] = "scienceqa"
    hub: ClassVar[tuple[str, ...]] = ("lmms-lab/ScienceQA", "lmms-lab-encoder/ScienceQA")
    config: ClassVar[str] = "ScienceQA-IMG"
    splits: ClassVar[tuple[str, ...]] = ("test", "validation", "train")
    metric: ClassVar[str] = "accuracy of the option's letter"
    columns: ClassVar[dict[str, forms.Form]] = {
        "question": forms.text,
        "choices": forms.texts,
        "answer": forms.whole,
        "hint": forms.optional_text,
        "subject": forms.optional_text,
        "image": forms.image,
    }

    def questions(self, row: forms.Row, number: int, where: str) -> list[Sample]:
        choices, answer = row["choices"], row["answer"]
        if not 0 <= answer < len(choices):
            raise DataError(
                f"{where}: the answer {answer} is not an option's index; the last of them is {len(choices) - 1}"
            )
        context = f"Context: {row['hint']}\n" if row["hint"] else ""
        question = f"{context}{row['question']}\n{option_lines(choices)}{LETTER}"
        letter = chr(ord("A") + answer)
        return [Sample(str(number), question, (letter,), (row["image"],), row["subject"], options=choices, where=where)]

    def score(self, answer: str, sample: Sample) -> float:
        return scienceqa_score(answer, sample.answers[0])
