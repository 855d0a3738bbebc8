"""Columns of a table: the form each is wanted in, and rows that do not have it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from PIL import Image

from vtc.errors import DataError

Form = Callable[[Any], Any]  # gives a column's value as it is wanted, or raises ValueError
Row = dict[str, Any]
LONGEST_LIST = 1_000_000  # characters; Python reads a spelled list at a hundred times its size


class Broken(Row):
    """A row that cannot be read, and why."""

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


@dataclass(frozen=True)
class Unreadable:
    """What stands for a value that could not be read: the reason, in words that follow the column's name."""

    reason: str


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
    if len(value) > LONGEST_LIST:
        return [value]
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
    if isinstance(row, Broken):
        raise DataError(f"{where}: {row.reason}")
    out = {}
    for name, form in columns.items():
        if isinstance(value := row.get(name), Unreadable):
            raise DataError(f"{where}: column {name!r} {value.reason}")
        try:
            out[name] = form(value)
        except (ValueError, TypeError):
            told = f"is {row[name]!r:.60}, not {form.__name__}" if name in row else "is missing"
            raise DataError(f"{where}: column {name!r} {told}; the columns expected are {schema(columns)}") from None
    return out


def schema(columns: Mapping[str, Form]) -> str:
    """The columns in words, like ``question (text), A to Z (optional_text)``."""
    found = []
    for letters, names in groupby(columns, lambda name: len(name) == 1 and name.isupper()):
        run = list(names)
        told = {f"{run[0]} to {run[-1]}": columns[run[0]]} if letters else {name: columns[name] for name in run}
        found += [f"{name} ({form.__name__})" for name, form in told.items()]
    return ", ".join(found)
