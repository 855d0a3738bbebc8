"""Questions of any benchmark as a TSV file that VLMEvalKit reads as a custom data set."""

from __future__ import annotations

import base64
import csv
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from string import ascii_uppercase

from PIL import Image

from vtc.errors import DataError
from vtc.eval.asking.generate import MARK
from vtc.eval.benchmarks import Benchmark, Sample
from vtc.files.atomic import write_atomic

COLUMNS = ("index", "id", "image", "image_path", "question", *ascii_uppercase, "answer", "category", "l2-category")
# What pandas.read_csv takes for a missing value, as VLMEvalKit calls it.
MISSING = {"#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"}
MISSING |= {"NULL", "NaN", "None", "n/a", "nan", "null"}


def export(benchmark: Benchmark, file: Path) -> int:
    """Write the samples of ``benchmark`` to ``file``, all or none; returns how many. Raises ``DataError``.

    ``index`` counts rows from 1, because VLMEvalKit names picture files after it; ``id`` is the benchmark's own.
    ``image`` is PNG in base64 (of several, ``str(list)``, with their file names in ``image_path``). ``answer``: the
    option's letter, a text, or ``str(list)`` of the accepted ones. Columns that no sample fills are left out:
    VLMEvalKit takes a file with ``A`` and ``B`` for multiple choice. Source: ``build_dataset`` and ``ImageBaseDataset``
    of open-compass/VLMEvalKit (``vlmeval/dataset/__init__.py``, ``image_base.py``).
    """
    filled, count = {"image"}, 0
    for count, sample in enumerate(benchmark.samples(), 1):
        filled |= texts(count, sample).keys()
    if not count:
        raise DataError(f"{benchmark.name} has no questions to export; give another file or split")
    columns = [name for name in COLUMNS if name in filled]

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, columns, delimiter="\t", lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: row.get(name, "") for name in columns} for row in rows(benchmark))

    write_atomic(file, write)
    return count


def rows(benchmark: Benchmark) -> Iterator[dict[str, str]]:
    """A row a sample, with its pictures."""
    for number, sample in enumerate(benchmark.samples(), 1):
        pictures = [png(picture) for picture in benchmark.pictures(sample)]
        image = pictures[0] if len(pictures) == 1 else str(pictures)
        yield {"image_path": names(number, len(pictures)), **texts(number, sample), "image": image}


def texts(number: int, sample: Sample) -> dict[str, str]:
    """The columns that a sample fills, except its pictures. Raises ``DataError``."""
    if sample.error:
        raise DataError(sample.error)
    if not sample.images:
        raise DataError(f"{sample.where}: no picture, and VLMEvalKit leaves such rows out; take the question out")
    if MARK in sample.question:
        raise DataError(f"{sample.where}: {MARK} in the question, and VLMEvalKit puts all pictures first; reword it")
    options: tuple[str, ...] = sample.options
    lettered = dict(zip(ascii_uppercase[: len(options)], options, strict=True))
    row = {
        "index": str(number),
        "id": sample.id,
        "image_path": names(number, len(sample.images)) if len(sample.images) > 1 else "",
        "question": without_options(sample.question, lettered),
        **lettered,
        "answer": str(list(sample.answers)) if len(sample.answers) > 1 else "".join(sample.answers),
        "category": sample.type,
        "l2-category": sample.group,
    }
    return {name: present(text) for name, text in row.items() if text}


def without_options(question: str, options: dict[str, str]) -> str:
    """The question before its option lines, which VLMEvalKit writes itself."""
    lines = "\n".join(f"{letter}. {text}" for letter, text in options.items())
    return question.partition(lines)[0].rstrip() if lines else question


def present(text: str) -> str:
    """An option like ``None`` would be read as missing, and the question would lose it; a space at its end keeps it."""
    return f"{text} " if text in MISSING else text


def names(number: int, pictures: int) -> str:
    """The file names that VLMEvalKit gives a row's pictures."""
    return str([f"{number}_{n}.png" for n in range(pictures)])


def png(picture: Image.Image) -> str:
    """Base64."""
    stream = BytesIO()
    picture.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")
