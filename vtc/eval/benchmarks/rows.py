"""Rows of public benchmarks, streamed: parquet or JSON lines in a folder, or the hub; and columns that are checked."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from PIL import Image

from vtc.errors import DataError, VTCError

Form = Callable[[Any], Any]  # gives a column's value as it is wanted, or raises ValueError
Row = dict[str, Any]
BATCH = 16  # rows of a parquet file in memory at once
TAIL = 65536  # bytes; the end of a parquet file holds its schema and where everything is


def text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def optional_text(value: Any) -> str:
    """Empty for a missing one; pandas writes ``nan`` for those."""
    return "" if value is None or value != value or value == "nan" else text(value)


def whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError
    return int(value)


def identity(value: Any) -> str:
    """A text or a whole number, not empty."""
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        raise ValueError
    return str(value)


def texts(value: Any) -> tuple[str, ...]:
    """A list of texts, or of ``{"answer": text}``; or ``str(list)``, as VLMEvalKit writes it; or one text."""
    if isinstance(value, str):
        value = listed(value) if value.startswith("[") else [value]
    found: list[Any] = [v.get("answer") if isinstance(v, dict) else v for v in value or ()]
    if not found or not all(isinstance(v, str) for v in found):
        raise ValueError
    return tuple(found)


def listed(value: str) -> list[Any]:
    """The list that ``value`` spells, or ``[value]``."""
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return [value]
    return [str(v) for v in found] if isinstance(found, list) else [value]


def optional_texts(value: Any) -> tuple[str, ...]:
    """Empty for none."""
    return () if value is None or value == [] or value == "[]" else texts(value)


def box(value: Any) -> tuple[float, ...]:
    """Left, top, width, height in pixels."""
    if not isinstance(value, (list, tuple)) or len(value) != 4:
        raise ValueError
    return tuple(float(v) for v in value)


def image(value: Any) -> Any:
    """Encoded bytes, ``{"bytes", "path"}``, a path, or a ``PIL.Image``: nothing is decoded."""
    inner = (value.get("bytes") or value.get("path")) if isinstance(value, dict) else value
    if not inner or not isinstance(inner, (bytes, bytearray, str, Image.Image)):
        raise ValueError
    return value


def optional_image(value: Any) -> Any:
    return None if value is None else image(value)


def images(value: Any) -> tuple[Any, ...]:
    """One or more."""
    found = value if isinstance(value, (list, tuple)) else [value]
    if not found:
        raise ValueError
    return tuple(map(image, found))


def conform(row: Mapping[str, Any], columns: Mapping[str, Form], where: str) -> Row:
    """The columns wanted, each in its form. Raises ``DataError`` that names the column and shows the schema."""
    out = {}
    for name, form in columns.items():
        try:
            out[name] = form(row.get(name))
        except (ValueError, TypeError):
            schema = ", ".join(f"{key} ({f.__name__})" for key, f in columns.items())
            told = f"is {row[name]!r:.60}, not {form.__name__}" if name in row else "is missing"
            raise DataError(f"{where}: column {name!r} {told}; the columns expected are {schema}") from None
    return out


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
    datasets = library()
    try:
        # load_dataset("parquet") would count the load on a server
        rows = datasets.Dataset.from_parquet(str(file), streaming=True, batch_size=BATCH)
        yield from rows.decode(False)
    except DataError:
        raise
    except Exception as error:  # pyarrow and datasets raise dozens of kinds
        raise DataError(f"{file} cannot be read as parquet ({brief(error)}); download it again") from None


def json_rows(file: Path) -> Iterator[Row]:
    """A JSON object a line."""
    try:
        with open(file, encoding="utf-8") as stream:
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
    """Rows of a TSV file, every value a text, an empty one None."""
    try:
        import pandas
    except ImportError:
        raise VTCError("TSV files need pandas, which comes with datasets; pip install 'vtc-vlm[eval]'") from None
    try:
        with pandas.read_csv(file, sep="\t", dtype=str, keep_default_na=False, chunksize=BATCH) as chunks:
            for chunk in chunks:
                for row in chunk.to_dict("records"):
                    yield {str(key): value or None for key, value in row.items()}
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise DataError(f"{file} cannot be read as TSV ({brief(error)}); give a file of tab-separated values") from None


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
    datasets = library()
    try:
        yield from datasets.load_dataset(name, config, split=split, revision=revision, streaming=True).decode(False)
    except Exception as error:
        raise DataError(f"{name} ({config}, {split}) cannot be read from the hub ({brief(error)})") from None


def library() -> Any:
    try:
        import datasets
    except ImportError:
        raise VTCError("public benchmarks need the library datasets; pip install 'vtc-vlm[eval]'") from None
    return datasets


def stamp(file: Path) -> str:
    """Name, size and a hash of the end: what tells one file of rows from another without reading all of it."""
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
