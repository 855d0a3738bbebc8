"""MME: two yes-or-no questions about each picture, one with either answer, in fourteen categories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from vtc.errors import DataError
from vtc.eval.benchmarks import forms, register
from vtc.eval.benchmarks.base import Sample
from vtc.eval.benchmarks.public import SHORT, Public
from vtc.eval.metrics.yes_no import mme_answer, mme_scores


@register("mme")
@dataclass(frozen=True)
class MME(Public):
    """Reported: the perception sum, of 2,000 points, and the cognition sum, of 800. ``limit`` counts pairs.

    A pair with a question that could not be asked is left out of the sums.
    """

    name: ClassVar[str] = "mme"
    hub: ClassVar[tuple[str, ...]] = ("lmms-lab/MME", "lmms-lab-encoder/MME")
    grouped: ClassVar[bool] = True
    metric: ClassVar[str] = "perception and cognition sums over pairs"
    columns: ClassVar[dict[str, forms.Form]] = {
        "question_id": forms.identity,
        "question": forms.text,
        "answer": forms.text,
        "category": forms.text,
        "image": forms.image,
    }

    def all_samples(self) -> Iterator[Sample]:
        members: Counter[str] = Counter()
        for sample in super().all_samples():
            pair = sample.id
            if not sample.error:
                members[pair] += 1
                sample = replace(sample, id=f"{pair}#{members[pair]}")
            yield sample
        for pair, count in members.items():
            if count != 2:
                told = f"mme: {pair!r} has {count} question(s), a pair has 2; add the other, or take both away"
                yield Sample(f"{pair}#pair", where=self.name, error=told)

    def questions(self, row: forms.Row, number: int, where: str) -> list[Sample]:
        if row["answer"] not in ("Yes", "No"):
            raise DataError(f"{where}: the answer is {row['answer']!r:.40}; MME's are Yes and No")
        question = row["question"].replace(" Please answer yes or no.", "") + SHORT
        return [Sample(row["question_id"], question, (row["answer"],), (row["image"],), row["category"], where=where)]

    def unit(self, sample: Sample) -> str:
        return sample.id.rpartition("#")[0] or sample.id

    def score(self, answer: str, sample: Sample) -> float:
        return float(mme_answer(answer) == sample.answers[0].lower())

    def aggregate(self, rows: Iterable[dict[str, Any]]) -> dict[str, float]:
        scored = [(row["type"], row["id"].rpartition("#")[0], row["score"]) for row in rows]
        members = Counter(pair for _, pair, _ in scored)
        found = mme_scores(row for row in scored if members[row[1]] == 2)
        sums = ("perception", "cognition")
        return {name if name in sums else f"category/{name}": value for name, value in found.items()}
