"""What the public benchmarks share: where their rows are, limits that keep groups whole, ids that are unique."""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from vtc.errors import DataError
from vtc.eval.benchmarks import forms, rows
from vtc.eval.benchmarks.base import Benchmark, Sample
from vtc.eval.data.images import load_any, stored_pixels
from vtc.eval.data.seen_texts import Seen

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Public(Benchmark):
    """A benchmark of the hub. Rows are streamed: from ``data_dir`` when given (parquet files as the hub has them; then
    the network is never asked), else from the hub, where ``repository`` is another name for it.

    ``limit`` takes the first so many questions, in the order of the files. Where questions belong together (``unit``)
    it takes the first so many units with all their questions, wherever those stand, and reads to the end for them.
    """

    hub: ClassVar[tuple[str, ...]] = ()  # names on the hub, the usual one first
    config: ClassVar[str] = "default"
    unlabelled: ClassVar[tuple[str, ...]] = ()  # splits without answers
    columns: ClassVar[dict[str, forms.Form]] = {}
    grouped: ClassVar[bool] = False

    repository: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        labelled = " or ".join(self.splits)
        if self.split in self.unlabelled:
            raise DataError(f"the answers of {self.name}'s split {self.split!r} are not public; use --split {labelled}")
        if self.split not in self.splits:
            raise DataError(f"{self.name} has no split {self.split!r}; use --split {labelled}")
        if self.hub and self.data_dir:
            _ = self.files  # a wrong folder is told before a model is loaded

    def questions(self, row: forms.Row, number: int, where: str) -> list[Sample]:
        """The samples of one row with the columns of ``columns``. Raises ``DataError``."""
        raise TypeError(f"{type(self).__name__} does not define questions()")

    def unit(self, sample: Sample) -> str:
        """What a limit keeps whole."""
        return sample.id

    @cached_property
    def files(self) -> list[Path]:
        """The files of the split; empty where rows come from the hub."""
        return rows.split_files(self.data_dir, self.config, self.split) if self.data_dir else []

    @cached_property
    def origin(self) -> tuple[str, str]:
        """The name on the hub and the revision that is read."""
        return rows.find_hub([self.repository] if self.repository else self.hub)

    def stored(self) -> Iterator[forms.Row]:
        """The split's rows as they are stored."""
        return rows.read_files(self.files) if self.data_dir else rows.hub_rows(*self.origin, self.config, self.split)

    def samples(self) -> Iterator[Sample]:
        return unique(self.limited(self.all_samples()))

    def all_samples(self) -> Iterator[Sample]:
        for number, row in enumerate(self.stored()):
            where = self.place(number)
            try:
                yield from self.questions(forms.conform(row, self.columns, where), number, where)
            except DataError as error:
                yield Sample(f"row:{number}", where=where, error=str(error))

    def place(self, number: int) -> str:
        """Where a row stands, in words; ``number`` from 0."""
        return f"{self.name}:{self.split}:{number}"

    def limited(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        if self.limit is None or not self.grouped:
            return islice(samples, self.limit)
        return first_units(samples, self.limit, self.unit)

    def pictures(self, sample: Sample) -> list[Image.Image]:
        return [load_any(image, self.root, where=sample.where) for image in sample.images]

    def pixels(self, sample: Sample) -> int:
        return sum(stored_pixels(image, self.root) for image in sample.images)

    @property
    def root(self) -> Path | None:
        """The folder that pictures are in where rows hold paths: ``images/`` of the data folder, or that itself. None
        for rows of the hub, whose paths are nobody's here."""
        if self.data_dir is None:
            return None
        return self.data_dir / "images" if (self.data_dir / "images").is_dir() else self.data_dir

    def fingerprint(self) -> dict[str, Any]:
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("data", "data_dir")}
        source = [rows.stamp(file) for file in self.files] if self.data_dir else list(self.origin)
        return {"name": self.name, **plain, "source": source}


def first_units(samples: Iterable[Sample], limit: int, unit: Any) -> Iterator[Sample]:
    """All samples of the first ``limit`` units."""
    taken: set[str] = set()
    for sample in samples:
        if len(taken) < limit:
            taken.add(unit(sample))
        if unit(sample) in taken:
            yield sample


def unique(samples: Iterable[Sample]) -> Iterator[Sample]:
    """A sample whose id was used before becomes an error."""
    seen = Seen()
    for number, sample in enumerate(samples):
        if not sample.error and not seen.add(sample.id):  # what a broken row is called may be a later row's id
            told = f"{sample.where}: id {sample.id!r} was used before; give every question its own id"
            sample = Sample(f"again:{number}", where=sample.where, error=told)
        yield sample


def lettered(options: Iterable[str]) -> dict[str, str]:
    """The options that are there, by letter."""
    return {letter: text for letter, text in zip(string.ascii_uppercase, options, strict=False) if text}


def options_of(row: forms.Row, letters: str) -> tuple[str, ...]:
    """The columns ``letters`` up to the last that holds an option."""
    texts = [row[letter] for letter in letters]
    return tuple(texts[: max((n for n, text in enumerate(texts, 1) if text), default=0)])


def option_lines(options: Iterable[str]) -> str:
    """``A. first``, ``B. second``, a line each."""
    return "\n".join(f"{letter}. {text}" for letter, text in lettered(options).items())


def letter(answer: str, options: tuple[str, ...], where: str) -> str:
    """``answer`` as the capital letter of one of ``options``. Raises ``DataError``."""
    found = answer.strip().upper()
    if found not in lettered(options):
        there = ", ".join(lettered(options)) or "none"
        raise DataError(f"{where}: column 'answer' is {answer!r:.40}, not an option's letter; there are {there}")
    return found
