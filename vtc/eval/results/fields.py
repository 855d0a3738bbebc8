"""What stands in a line of a results file: each field, its type and its range."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Check = Callable[[Any], bool]


def text(value: Any) -> bool:
    return isinstance(value, str)


def texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(text, value))


def count(value: Any) -> bool:
    """A whole number from 0 on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def amount(value: Any) -> bool:
    """A number from 0 on."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def share(value: Any) -> bool:
    """A number in [0, 1]."""
    return amount(value) and value <= 1


def share_or_nan(value: Any) -> bool:
    """NaN: logits overflowed."""
    return share(value) or isinstance(value, float) and math.isnan(value)


def amount_or_none(value: Any) -> bool:
    return value is None or amount(value)


PLACE: dict[str, Check] = {"cell": text, "batch": count}
QUESTION = PLACE | {"row": count, "id": text}
CLOSED = PLACE | {"closed": text}
ERROR = QUESTION | {"error": text}
ANSWER = QUESTION | {"answer": text, "expected": texts, "score": share, "tokens": amount}
# not in every line: which of them stand there has changed between versions
MORE: dict[str, Check] = {"type": text, "group": text, "confidence": share_or_nan, "least": amount_or_none}


def check(line: dict[str, Any], rows: int) -> None:
    """Raises ``ValueError`` that names the field for one that is missing, unknown or not as it is written; ``rows``:
    more than a row can be."""
    wanted = CLOSED if "closed" in line else ERROR if "error" in line else ANSWER
    for name in wanted:
        if name not in line:
            raise ValueError(f"{name} is missing")
    for name, value in line.items():
        allowed = wanted.get(name) or MORE.get(name)
        if allowed is None:
            raise ValueError(f"{name!a:.80} is no field of it")
        if not allowed(value):
            raise ValueError(f"{name} is {value!r:.80}, not {allowed.__name__.replace('_', ' ')}")
    if line.get("row", 0) >= rows:
        raise ValueError(f"row {line['row']} in a file that holds fewer")
