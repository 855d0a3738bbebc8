"""easy-VQA (MIT): one large shape on a plain ground, 13 answers; its official files on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from vtc.errors import DataError
from vtc.eval.benchmarks import register
from vtc.eval.benchmarks.base import Benchmark, Sample, hash_file
from vtc.eval.data.images import load_image


@register("easy_vqa")
@dataclass(frozen=True)
class EasyVQA(Benchmark):
    """``data_dir`` holds ``train/`` and ``test/``, each with ``questions.json`` and ``images/``."""

    name: ClassVar[str] = "easy_vqa"
    max_new_tokens: ClassVar[int] = 8
    splits: ClassVar[tuple[str, ...]] = ("test", "train")

    @property
    def file(self) -> Path:
        if self.data_dir is None:
            raise DataError("easy_vqa needs its files; give --data-dir, the folder that holds train/ and test/")
        return self.data_dir / self.split / "questions.json"

    @cached_property
    def rows(self) -> list[Any]:
        try:
            rows = json.loads(self.file.read_bytes())
        except OSError as error:
            raise DataError(f"{self.file} cannot be read ({error.strerror}); give the right --data-dir") from None
        except ValueError as error:
            raise DataError(f"{self.file} is not JSON ({error}); download it again") from None
        if not isinstance(rows, list):
            raise DataError(
                f"{self.file} holds a {type(rows).__name__}; expected a list of [question, answer, image_id]"
            )
        return rows

    def samples(self) -> Iterator[Sample]:
        for n, row in enumerate(islice(self.rows, self.limit)):
            where = f"{self.split}/questions.json: entry {n}"
            match row:
                case [str(question), str(answer), int(image)]:
                    yield Sample(str(n), question, (answer,), (f"{image}.png",), kind(question, answer), where=where)
                case _:
                    yield Sample(
                        str(n), where=where, error=f"{where}: expected [question, answer, image_id], got {row!r:.80}"
                    )

    def pictures(self, sample: Sample) -> list[Image.Image]:
        return [load_image(image, self.file.parent / "images", where=sample.where) for image in sample.images]

    def count(self) -> int:
        return len(self.rows[: self.limit])

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "data": hash_file(self.file)}


def kind(question: str, answer: str) -> str:
    """The three kinds of questions that easy-VQA has."""
    if answer in ("yes", "no"):
        return "yes/no"
    return "color" if "color" in question else "shape"
