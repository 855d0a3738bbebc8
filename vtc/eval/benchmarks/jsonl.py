"""Your own pictures: a line a question, ``{"id": ..., "image": path or [paths], "question": ..., "answer": ...}``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from vtc.errors import DataError
from vtc.eval.benchmarks import register
from vtc.eval.benchmarks.base import Benchmark, Sample, hash_file
from vtc.eval.data.images import load_image, pixels
from vtc.eval.data.seen_texts import Seen

MAX_LINE = 1_000_000  # bytes
MAX_IMAGES = 64
BOM = b"\xef\xbb\xbf"  # which Windows puts before a file, and so into the middle of files put together


@register("jsonl")
@dataclass(frozen=True)
class JSONL(Benchmark):
    """``data``: the file; picture paths are relative to ``data_dir`` (the file's own folder unless given), and stay in.

    A line without ``id`` has its number for one. An optional ``type`` splits the tables. Rows that cannot be used come
    out as samples with ``error``.
    """

    name: ClassVar[str] = "jsonl"
    max_new_tokens: ClassVar[int] = 32

    @property
    def file(self) -> Path:
        if self.data is None:
            raise DataError("no questions given; give --data questions.jsonl")
        return self.data

    @property
    def root(self) -> Path:
        return self.data_dir or self.file.parent

    def samples(self) -> Iterator[Sample]:
        seen = Seen()
        for number, line in islice(lines(self.file), self.limit):
            where = f"{self.file.name}:{number}"
            try:
                sample = parse(line, number, where)
                if not seen.add(sample.id):
                    raise DataError(f"{where}: id {sample.id!r} was used before; give every question its own id")
            except DataError as error:
                sample = Sample(f"line:{number}", where=where, error=str(error))
            yield sample

    def pictures(self, sample: Sample) -> list[Image.Image]:
        return [load_image(image, self.root, where=sample.where) for image in sample.images]

    def pixels(self, sample: Sample) -> int:
        return sum(pixels(image, self.root) for image in sample.images)

    def count(self) -> int:
        return sum(1 for _ in islice(lines(self.file), self.limit))

    def fingerprint(self) -> dict[str, Any]:
        return {**super().fingerprint(), "data": hash_file(self.file)}


def lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line) of every line that is not blank, without a byte-order mark; a too long one comes out cut at
    ``MAX_LINE + 1`` bytes."""
    try:
        with open(file, "rb") as stream:
            number = 0
            while line := stream.readline(MAX_LINE + 1):
                number += 1
                rest = line
                while not rest.endswith(b"\n") and (rest := stream.readline(MAX_LINE)):
                    pass  # skip what is beyond the limit without holding it
                if (line := line.removeprefix(BOM)).strip():
                    yield number, line
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); give an existing jsonl file") from None


def record(line: bytes, where: str, holds: str) -> dict[str, Any]:
    """One line as the object it is, which should hold the keys ``holds``; raises ``DataError`` with the place and the
    remedy."""
    if len(line) > MAX_LINE:
        raise DataError(
            f"{where}: the line is longer than {MAX_LINE:,} bytes; keep pictures in files and name their paths"
        )
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 at byte {error.start}; save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error}); write one object a line") from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: a {type(row).__name__}; expected an object with {holds}")
    return row


def parse(line: bytes, number: int, where: str) -> Sample:
    """Line ``number`` as a sample; raises ``DataError`` with the place and the remedy."""
    row = record(line, where, "id, image, question, answer")
    identity = number if row.get("id") is None else row["id"]
    if isinstance(identity, bool) or not isinstance(identity, (str, int)) or identity == "":
        raise DataError(f"{where}: id is {identity!r:.80}; give every question a text or a whole number as id")
    return Sample(
        id=str(identity),
        question=texts(row, "question", where)[0],
        answers=texts(row, "answer", where, many=True),
        images=texts(row, "image", where, many=True),
        type=texts(row, "type", where)[0] if "type" in row else "",
        where=where,
    )


def texts(row: dict, key: str, where: str, many: bool = False) -> tuple[str, ...]:
    """The text (or, with ``many``, list of texts) under ``key``; at least one, none empty."""
    value = row.get(key)
    values = value if many and isinstance(value, list) else [value]
    if not values or not all(isinstance(v, str) and v.strip() for v in values):
        form = "a text or a list of texts" if many else "a text"
        raise DataError(f"{where}: {key} is {value!r:.80}; expected {form}, not empty")
    if key == "image" and len(values) > MAX_IMAGES:
        raise DataError(f"{where}: {len(values)} pictures, above {MAX_IMAGES}; ask about fewer at once")
    return tuple(values)
