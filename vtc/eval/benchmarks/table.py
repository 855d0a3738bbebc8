"""Your own table, with the columns of VLMEvalKit: a TSV file with pictures in base64, or a parquet file."""

from __future__ import annotations

import base64
import binascii
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from vtc.errors import DataError
from vtc.eval.benchmarks import forms, register, rows
from vtc.eval.benchmarks.base import Sample, hash_file
from vtc.eval.benchmarks.public import LETTER, Public, letter, lettered, option_lines, options_of
from vtc.eval.metrics import exact_match
from vtc.eval.metrics.letters import told_letter

LONGEST_PATH = 1024  # characters; what is longer is a picture in base64


@dataclass(frozen=True)
class Table(Public):
    """``data``: the file. Those of the columns A to Z that are not empty are a row's options, and its answer a letter,
    which ``vtc.eval.metrics.letters`` reads from replies. Else it is a text, or a list of texts (``str(list)``), and
    ``vtc.eval.metrics.answers`` says which are the same. Pictures: base64, bytes, or paths beside the file (or in
    ``data_dir``). ``limit`` takes the first rows."""

    max_new_tokens: ClassVar[int] = 32
    metric: ClassVar[str] = "exact match, or the option's letter"
    columns: ClassVar[dict[str, forms.Form]] = {
        "index": forms.identity,
        "image": forms.images,
        "question": forms.text,
        "answer": forms.texts,
        "hint": forms.optional_text,
        **dict.fromkeys(string.ascii_uppercase, forms.optional_text),
        "category": forms.optional_text,
    }

    @property
    def file(self) -> Path:
        if self.data is None:
            raise DataError(f"no questions given; give --data questions.{self.name}")
        return self.data

    def place(self, number: int) -> str:
        return f"{self.file.name}: row {number + 1}"

    @property
    def root(self) -> Path:
        return self.data_dir or self.file.parent

    def questions(self, row: forms.Row, number: int, where: str) -> list[Sample]:
        letters, answers, text = string.ascii_uppercase, row["answer"], row["question"]
        options = options_of({name: row[name].strip() for name in letters}, letters)
        if row["hint"]:
            text = f"{row['hint']}\n{text}"
        if options:
            answers = (letter(answers[0], options, where),)
            text = f"{text}\n{option_lines(options)}{LETTER}"
        images = tuple(picture(value, where) for value in row["image"])
        return [Sample(row["index"], text, answers, images, row["category"], where=where, options=options)]

    def score(self, answer: str, sample: Sample) -> float:
        if sample.options:
            return float(told_letter(answer, lettered(sample.options)) == sample.answers[0])
        return exact_match(answer, sample.answers)

    def fingerprint(self) -> dict[str, Any]:
        return {"name": self.name, "split": self.split, "limit": self.limit, "source": hash_file(self.file)}


@register("tsv")
@dataclass(frozen=True)
class TSV(Table):
    """A TSV file of VLMEvalKit."""

    name: ClassVar[str] = "tsv"

    def stored(self) -> Iterator[forms.Row]:
        return rows.tsv_rows(self.file)


@register("parquet")
@dataclass(frozen=True)
class Parquet(Table):
    """A parquet file with the same columns."""

    name: ClassVar[str] = "parquet"

    def stored(self) -> Iterator[forms.Row]:
        return rows.parquet_rows(self.file)


def picture(value: Any, where: str) -> Any:
    """Base64 as bytes; anything else as it is. Raises ``DataError``."""
    if not isinstance(value, str) or (len(value) <= LONGEST_PATH and "." in value):
        return value
    if value.isdigit():
        raise DataError(f"{where}: the picture is that of row {value}; write it into this row too, rows are streamed")
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error as error:
        raise DataError(f"{where}: the picture is no path and not base64 ({error}); encode it again") from None
