"""POPE (MIT): is there such an object in the picture? Three ways of choosing objects that are not there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from vtc.errors import DataError
from vtc.eval.benchmarks import forms, register, rows
from vtc.eval.benchmarks.base import Sample
from vtc.eval.benchmarks.public import SHORT, Public
from vtc.eval.metrics import mean
from vtc.eval.metrics.yes_no import binary_figures, pope_answer

OFFICIAL = "coco_pope_*.json"


@register("pope")
@dataclass(frozen=True)
class POPE(Public):
    """Reported: F1 of yes and accuracy, each a mean over the three categories; ``yes_ratio`` is that of the replies.

    ``data_dir`` may also hold the official ``coco_pope_<category>.json`` (a JSON object a line: question_id, image,
    text, label) with the COCO pictures beside them or in ``images/``. ``strict``: a reply must be yes or no and nothing
    else (lmms-eval); otherwise the official parser reads it.
    """

    name: ClassVar[str] = "pope"
    hub: ClassVar[tuple[str, ...]] = ("lmms-lab/POPE", "lmms-lab-encoder/POPE")
    metric: ClassVar[str] = "F1, accuracy, precision, recall, yes-ratio"
    columns: ClassVar[dict[str, forms.Form]] = {
        "question_id": forms.identity,
        "question": forms.text,
        "answer": forms.text,
        "category": forms.text,
        "image": forms.image,
    }

    strict: bool = False

    @cached_property
    def files(self) -> list[Path]:
        if self.data_dir and (found := sorted(self.data_dir.glob(OFFICIAL))):
            return found
        return rows.split_files(self.data_dir, self.config, self.split) if self.data_dir else []

    def stored(self) -> Iterator[forms.Row]:
        for file in self.files:
            if file.suffix == ".json":
                category = file.stem.rpartition("_")[2]
                for row in rows.json_rows(file):
                    named = {"question": row.get("text"), "answer": row.get("label"), "category": category}
                    yield row | named
            else:
                yield from rows.read_files([file])
        if not self.data_dir:
            yield from super().stored()

    def questions(self, row: forms.Row, number: int, where: str) -> list[Sample]:
        if row["answer"] not in ("yes", "no"):
            raise DataError(f"{where}: the answer is {row['answer']!r:.40}; POPE's are yes and no")
        identity = f"{row['category']}:{row['question_id']}"
        question = row["question"] + SHORT
        return [Sample(identity, question, (row["answer"],), (row["image"],), row["category"], where=where)]

    def score(self, answer: str, sample: Sample) -> float:
        return float(pope_answer(answer, self.strict) == sample.answers[0])

    def aggregate(self, rows: Iterable[dict[str, Any]]) -> dict[str, float]:
        said: dict[str, list[tuple[str, str]]] = defaultdict(list)
        for row in rows:
            said[row["type"]].append((pope_answer(row["answer"], self.strict), row["expected"][0]))
        parts = {c: binary_figures(*zip(*pairs, strict=True)) for c, pairs in sorted(said.items())}
        names = ("f1", "accuracy", "precision", "recall", "yes_ratio")
        whole = {name: mean(part[name] for part in parts.values()) for name in names}
        return whole | {f"{c}/{name}": part[name] for c, part in parts.items() for name in names}
