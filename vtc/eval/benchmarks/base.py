"""What a benchmark is: where samples come from, how one is asked, how an answer is scored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from vtc.errors import DataError
from vtc.eval.metrics import exact_match, normalise


@dataclass(frozen=True)
class Sample:
    """One question. ``images`` is whatever the benchmark's ``pictures`` turns into pictures: nothing is decoded yet.

    ``where`` says where the row stands (file:line). A row that cannot be used has ``error``, the reason, and is never
    asked nor scored. ``type`` and the coarser ``group`` split the tables. ``options``: the texts of options A, B, ...,
    empty where there is none under that letter; ``rule``: which of several ways of scoring this question has.
    """

    id: str
    question: str = ""
    answers: tuple[str, ...] = ()
    images: tuple[Any, ...] = ()
    type: str = ""
    group: str = ""
    where: str = ""
    error: str = ""
    options: tuple[str, ...] = ()
    rule: str = ""


@dataclass(frozen=True)
class Benchmark:
    """A source of samples. ``data``: a file of rows; ``data_dir``: the folder that pictures stay inside; ``split``:
    empty for the usual one; ``limit``: only the first so many samples (None = all)."""

    name: ClassVar[str] = ""
    frame: ClassVar[str] = "USER: {question} ASSISTANT:"  # for processors without a chat template
    max_new_tokens: ClassVar[int] = 16
    splits: ClassVar[tuple[str, ...]] = ("test",)  # with answers, the usual one first
    metric: ClassVar[str] = "exact match"

    data: Path | None = None
    data_dir: Path | None = None
    split: str = ""
    seed: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "split", self.split or self.splits[0])

    def samples(self) -> Iterator[Sample]:
        """Every sample, in an order that never changes, streamed."""
        raise TypeError(f"{type(self).__name__} does not define samples()")

    def pictures(self, sample: Sample) -> list[Image.Image]:
        """The sample's pictures as RGB. Raises ``DataError``."""
        return list(sample.images)

    def pixels(self, sample: Sample) -> int:
        """How many pixels its pictures have, where no picture must be decoded to know; else 0. Like goes with like
        into a batch."""
        return sum(p.width * p.height for p in sample.images if isinstance(p, Image.Image))

    def score(self, answer: str, sample: Sample) -> float:
        """The answer's score in [0, 1]."""
        return exact_match(answer, sample.answers)

    def credits(self, expected: Sequence[str]) -> dict[str, float]:
        """What giving each of the expected answers would score: from this comes the floor, a blind answerer's score."""
        return {normalise(answer): 1.0 for answer in expected}

    def aggregate(self, rows: Iterable[dict[str, Any]]) -> dict[str, float]:
        """Figures of one cell that are not the mean score, the one the field reports first; names with a slash
        (``random/f1``) stay out of the table. ``rows``: id, type, group, answer, expected and score of every question
        that has one."""
        return {}

    def count(self) -> int | None:
        """How many samples there are, when that is cheap to know."""
        return None

    def fingerprint(self) -> dict[str, Any]:
        """What must not change between two halves of one run."""
        return {"name": self.name, "split": self.split, "seed": self.seed, "limit": self.limit}


def check_rows(benchmark: Benchmark, allow_errors: bool = False, remedy: str = "") -> None:
    """Reads every row of a file of one's own (``data``), before a run begins. Raises ``DataError`` when one cannot be
    used (``remedy``: what else to do then; with ``allow_errors`` when none can), when there is none, and when no
    picture of the first 20 can be read."""
    if benchmark.data is None:
        return
    name, count = benchmark.data.name, 0
    errors: list[str] = []
    for count, sample in enumerate(benchmark.samples(), 1):  # noqa: B007  # how many there are
        errors += [sample.error] if sample.error else []
    if not count:
        raise DataError(f"{name} holds no questions; give a file with one a row")
    first = "; ".join(errors[:3])
    if len(errors) == count:
        raise DataError(f"no row of {name} can be used, first: {first}")
    if errors and not allow_errors:
        raise DataError(
            f"{len(errors)} of {count} rows of {name} cannot be used, first: {first}; mend or take out these rows"
            f"{remedy}"
        )
    check_pictures(benchmark)


def check_pictures(benchmark: Benchmark, least: int = 20) -> None:
    """Raises ``DataError`` when the pictures of the first ``least`` samples that may be asked cannot be read, any of
    them: it stops at the first that can."""
    reasons = []
    for sample in islice((s for s in benchmark.samples() if not s.error), least):
        try:
            benchmark.pictures(sample)
        except DataError as error:
            reasons.append(str(error))
        else:
            return
    raise DataError(f"no picture of the first {len(reasons)} questions can be read, first: {reasons[0]}")


def hash_file(path: Path) -> str:
    """SHA-256 of a file, hex."""
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give an existing file") from None
