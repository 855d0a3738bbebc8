"""Where rows come from, streamed: parquet, JSON lines or TSV files, or the hub."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import chain
from pathlib import Path
from typing import Any

from vtc.errors import DataError, VTCError
from vtc.eval.benchmarks.base import hash_file
from vtc.eval.benchmarks.forms import Broken, Row, Unreadable

UNPACKED, BOMB = 256_000_000, 100  # a column may unpack to so many bytes, or to so many times what is stored
VALUES = 10_000  # of a row's column of lists, on average
MAX_FIELD = 200_000_000  # characters of a field of a TSV file: a picture of 150 MB
END = "\0"  # a last line of a TSV file that no file has: what holds it was quoted and never ended
TAIL = 65536  # bytes; the end of a parquet file holds its schema and where everything is


def split_files(folder: Path, config: str, split: str) -> list[Path]:
    """The parquet files (or JSON lines) of a split, as the hub lays them out: ``config/``, ``data/`` or the folder
    itself, ``split-00000-of-00002.parquet`` or ``split.parquet``. Raises ``DataError`` when there are none, or when
    one of several is missing."""
    for place in (folder / config, folder / "data", folder):
        for suffix in (".parquet", ".jsonl"):
            pattern = re.compile(rf"{re.escape(split)}(-\d+-of-(\d+))?{re.escape(suffix)}")
            found = sorted(p for p in place.glob(f"{split}*") if pattern.fullmatch(p.name))
            of = {int(m[2] or 1) for p in found if (m := pattern.fullmatch(p.name))}
            if found and of != {len(found)}:
                raise DataError(f"{place} has {len(found)} of {max(of)} {split} files; download the others too")
            if found:
                return found
    raise DataError(
        f"{folder} has no {split}.parquet and no {split}-00000-of-....parquet, nor have its folders {config} and data; "
        "download the files there, or give the right --data-dir"
    )


def read_files(files: Sequence[Path]) -> Iterator[Row]:
    """Rows of parquet or JSON lines files, one after the other; pictures stay encoded."""
    for file in files:
        yield from parquet_rows(file) if file.suffix == ".parquet" else json_rows(file)


def parquet_rows(file: Path) -> Iterator[Row]:
    """By pyarrow, which holds a row group; datasets held several (0.9 against 0.25 GB for rows of 0.4 MB)."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise VTCError("parquet files need pyarrow, which comes with datasets; pip install 'vtc-vlm[eval]'") from None
    try:
        with ParquetFile(file, pre_buffer=False) as table:
            for group in range(table.num_row_groups):
                stored = table.metadata.row_group(group)
                if reason := bomb(stored):
                    yield from (Broken(reason) for _ in range(stored.num_rows))
                    continue
                # one at a time: many rows may be the same large entry of a dictionary
                yield from map(plain, table.iter_batches(batch_size=1, row_groups=[group], use_threads=False))
    except (OSError, ValueError, MemoryError, NotImplementedError) as error:  # pyarrow's own errors are of these kinds
        raise DataError(f"{file} cannot be read as parquet ({brief(error)}); download it again") from None


def bomb(group: Any) -> str:
    """Why the rows of a parquet row group are not unpacked; empty where they may be. What its columns take is read from
    the file's end before any of it is."""
    for number in range(group.num_columns):
        column = group.column(number)
        small, large, name = column.total_compressed_size, column.total_uncompressed_size, column.path_in_schema
        if large > max(UNPACKED, BOMB * small):
            return f"column {name!r} unpacks {small:,} bytes to {large:,}; above {BOMB} times as many it is not read"
        if column.num_values > VALUES * group.num_rows:
            return f"column {name!r} has {column.num_values:,} values in {group.num_rows:,} rows; write fewer a row"
    return ""


def plain(row: Any) -> Row:
    """A batch of one row as Python's values; a text that is not UTF-8 spoils only its own row."""
    try:
        return row.to_pylist()[0]
    except ValueError as error:
        return Broken(f"cannot be read ({brief(error)}); write it again")


def json_rows(file: Path) -> Iterator[Row]:
    """A JSON object a line."""
    try:
        with open(file, encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise DataError(f"{file}:{number}: a {type(row).__name__}; expected an object a line")
                    yield row
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); give the right --data-dir") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{file} is not JSON lines ({brief(error)}); download it again") from None


def tsv_rows(file: Path) -> Iterator[Row]:
    """Rows of a TSV file, every value a text, an empty one None; a row of another length than the head has an
    ``Unreadable`` where it begins to differ."""
    # The limit of csv is global, and of 128 KB: pictures in base64 are longer. It is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD))
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(chain(stream, ["\n", END]), "excel-tab")
            found = (row for row in reader if row)
            head = next(found)
            if len(set(head)) < len(head):
                twice = next(name for name in head if head.count(name) > 1)
                raise DataError(f"{file}: column {twice!r} stands twice in the head; name each column once")
            for row in found:
                if row == [END]:
                    return
                if row[-1].endswith(END):
                    raise ValueError(f"a quote that is opened before line {reader.line_num - 1} is never closed")
                yield fields(head, row)
            raise ValueError("it has no head")
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{file} cannot be read as TSV ({brief(error)}); give a file of tab-separated values") from None


def fields(head: list[str], row: list[str]) -> Row:
    """A row by the names of the head."""
    found: Row = {name: value or None for name, value in zip(head, row, strict=False)}
    for name in head[len(row) :]:
        found[name] = Unreadable(
            "is missing, the row ends before it; write a tab for every column, also before an empty one"
        )
    if len(row) > len(head):
        told = f"is the last of {len(head)}, and the row has {len(row)} fields; quote a field that holds tabs or quotes"
        found[head[-1]] = Unreadable(told)
    return found


def find_hub(names: Sequence[str]) -> tuple[str, str]:
    """The first of ``names`` that the hub has, and its newest revision. Raises ``DataError``."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    for name in names:
        try:
            return name, str(HfApi().dataset_info(name).sha)
        except RepositoryNotFoundError:
            continue
        except Exception as error:  # no network, a proxy, a server's error
            raise DataError(
                f"the hub cannot be asked for {name} ({brief(error)}); download it once and give --data-dir"
            ) from None
    raise DataError(f"the hub has none of {', '.join(names)}; give the name of the data set, or --data-dir")


def hub_rows(name: str, revision: str, config: str, split: str) -> Iterator[Row]:
    """Rows of a split, streamed from the hub; pictures stay encoded."""
    try:
        import datasets
    except ImportError:
        raise VTCError("the hub's data sets need the library datasets; pip install 'vtc-vlm[eval]'") from None
    try:
        yield from datasets.load_dataset(name, config, split=split, revision=revision, streaming=True).decode(False)
    except Exception as error:  # pyarrow, fsspec and the hub raise dozens of kinds
        raise DataError(f"{name} ({config}, {split}) cannot be read from the hub ({brief(error)})") from None


def stamp(file: Path) -> str:
    """A file's name, size and hash; of a parquet file, which may be huge, a hash of its end."""
    if file.suffix != ".parquet":
        return f"{file.name} {hash_file(file)}"
    try:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            stream.seek(max(size - TAIL, 0))
            return f"{file.name} {size} {blake2b(stream.read(), digest_size=16).hexdigest()}"
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror}); give an existing file") from None


def brief(error: BaseException) -> str:
    """The kind and the first words of an error."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
