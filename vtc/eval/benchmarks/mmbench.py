"""MMBench: questions with up to four options, asked once for every rotation of the options."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from vtc.eval.benchmarks import forms, register
from vtc.eval.benchmarks.base import Sample
from vtc.eval.benchmarks.public import LETTER, Public, letter, lettered, option_lines, options_of
from vtc.eval.metrics import mean, means
from vtc.eval.metrics.options import circular, mmbench_letter

ROTATION = 1_000_000  # rotation r of question q has the index q + r * ROTATION


@register("mmbench")
@dataclass(frozen=True)
class MMBench(Public):
    """Reported: circular accuracy on ``en``/``dev``: a question counts when every rotation is answered right. Letters
    are read by rules, without a judge. ``limit`` counts questions; all their rotations are asked."""

    name: ClassVar[str] = "mmbench"
    hub: ClassVar[tuple[str, ...]] = ("lmms-lab/MMBench", "lmms-lab-encoder/MMBench")
    config: ClassVar[str] = "en"
    splits: ClassVar[tuple[str, ...]] = ("dev",)
    unlabelled: ClassVar[tuple[str, ...]] = ("test",)
    grouped: ClassVar[bool] = True
    metric: ClassVar[str] = "circular accuracy"
    columns: ClassVar[dict[str, forms.Form]] = {
        "index": forms.whole,
        "question": forms.text,
        "hint": forms.optional_text,
        "answer": forms.text,
        **dict.fromkeys("ABCD", forms.optional_text),
        "category": forms.optional_text,
        "L2-category": forms.optional_text,
        "image": forms.image,
    }

    def questions(self, row: forms.Row, number: int, where: str) -> list[Sample]:
        options = options_of(row, "ABCD")
        hint = f"{row['hint']} " if row["hint"] else ""
        question = f"{hint}{row['question']} There are several options:\n{option_lines(options)}\n{LETTER}"
        return [
            Sample(
                id=str(row["index"]),
                question=question,
                answers=(letter(row["answer"], options, where),),
                images=(row["image"],),
                type=row["category"],
                group=row["L2-category"],
                options=options,
                where=where,
            )
        ]

    def unit(self, sample: Sample) -> str:
        return sample.id if sample.error else str(int(sample.id) % ROTATION)

    def score(self, answer: str, sample: Sample) -> float:
        return float(mmbench_letter(answer, lettered(sample.options)) == sample.answers[0])

    def aggregate(self, rows: Iterable[dict[str, Any]]) -> dict[str, float]:
        scored = [(int(row["id"]), row["score"], row["group"]) for row in rows]
        hits = circular((index, score) for index, score, _ in scored)
        first = {index: (score, group) for index, score, group in scored if index < ROTATION}
        groups = means((group, hits[index]) for index, (_, group) in first.items() if group)
        single = {"single_pass": mean(score for score, _ in first.values())}
        return {"circular": mean(hits.values())} | single | groups
