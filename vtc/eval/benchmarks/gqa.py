"""GQA (MIT): compositional questions about scene graphs of real pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from vtc.errors import DataError
from vtc.eval.benchmarks import forms, register, rows
from vtc.eval.benchmarks.base import Sample
from vtc.eval.benchmarks.public import SHORT, Public
from vtc.eval.metrics.text import gqa_match

PICTURES = "testdev_balanced_images"


@register("gqa")
@dataclass(frozen=True)
class GQA(Public):
    """Reported: exact match without case and punctuation (lmms-eval). Questions and pictures are two tables, joined by
    ``imageId``; the 398 encoded pictures of testdev are held while it runs."""

    name: ClassVar[str] = "gqa"
    hub: ClassVar[tuple[str, ...]] = ("lmms-lab/GQA", "lmms-lab-encoder/GQA")
    config: ClassVar[str] = "testdev_balanced_instructions"
    splits: ClassVar[tuple[str, ...]] = ("testdev",)
    metric: ClassVar[str] = "exact match without case and punctuation"
    columns: ClassVar[dict[str, forms.Form]] = {
        "id": forms.identity,
        "imageId": forms.identity,
        "question": forms.text,
        "answer": forms.text,
    }

    @cached_property
    def encoded(self) -> dict[str, Any]:
        """The pictures, not decoded, by id."""
        wanted = {"id": forms.identity, "image": forms.image}
        found = (forms.conform(row, wanted, f"gqa pictures:{n}") for n, row in enumerate(self.picture_rows()))
        return {row["id"]: row["image"] for row in found}

    def picture_rows(self) -> Iterator[forms.Row]:
        if self.data_dir is None:
            return rows.hub_rows(*self.origin, PICTURES, self.split)
        if not (self.data_dir / PICTURES).is_dir():
            raise DataError(f"{self.data_dir} has no {PICTURES}; GQA's pictures are files of their own, download them")
        return rows.read_files(rows.split_files(self.data_dir, PICTURES, self.split))

    def questions(self, row: forms.Row, number: int, where: str) -> list[Sample]:
        picture = self.encoded.get(row["imageId"])
        if picture is None:
            raise DataError(f"{where}: picture {row['imageId']!r} is not in {PICTURES}; download both configurations")
        return [Sample(row["id"], row["question"] + SHORT, (row["answer"],), (picture,), where=where)]

    def score(self, answer: str, sample: Sample) -> float:
        return gqa_match(answer, sample.answers[0])

    def fingerprint(self) -> dict[str, Any]:
        files = rows.split_files(self.data_dir, PICTURES, self.split) if self.data_dir else []
        return super().fingerprint() | {"pictures": [rows.stamp(file) for file in files]}
