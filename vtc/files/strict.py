"""JSON and YAML of vtc's own files, read strictly: bounded before it is parsed, and nothing in it twice or not plain.

A file may be cut off, edited or hostile. What is refused raises ``CheckpointError`` with its name and the reason: more
bytes, depth or values than any of our files has, text that is no UTF-8, a name that occurs twice in an object, NaN and
infinities, what is no plain data. YAML may use aliases, as long as what they stand for stays within the bounds.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from vtc.errors import CheckpointError

LARGEST = 32_000_000  # bytes; the description of a 70B model's layers takes 5 million
MOST = 10_000_000  # values, those of aliases counted as often as they are used
DEEPEST = 64


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ``FileNotFoundError`` where there is none, else ``CheckpointError``."""
    return parse_json(_bytes(path), str(path))


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """The object that ``content`` holds. Raises ``CheckpointError``."""
    try:
        found = json.loads(content.decode("utf-8"), object_pairs_hook=_once)
        check_plain(found)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where} cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{where} holds a {type(found).__name__}, not an object")
    return found


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, of plain values. Raises ``FileNotFoundError`` where there is none, else
    ``CheckpointError``."""
    import yaml

    content = _bytes(path)
    try:
        found = _loader()(content.decode("utf-8")).get_single_data()
        check_plain(found)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path} cannot be read as YAML ({error})") from error
    return found


def check_plain(value: Any) -> None:
    """Raises ``ValueError`` for what plain JSON cannot hold, or more of it than ``DEEPEST`` and ``MOST`` allow."""
    level, count = [value], 0
    for _ in range(DEEPEST):
        inside: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inside += [*each, *each.values()] if all(type(key) is str for key in each) else [object()]
            elif isinstance(each, list):
                inside += each
            elif isinstance(each, str):
                each.encode()  # half of a surrogate pair is no text
            elif isinstance(each, float) and not math.isfinite(each):
                raise ValueError(f"{each} is no finite number")
            elif each is not None and type(each) not in (bool, int, float):
                raise ValueError(f"a value or a name of the type {type(each).__name__}, where plain data belongs")
            if count + len(inside) > MOST:
                raise ValueError(f"more than {MOST} values")
        level, count = inside, count + len(inside)
        if not level:
            return
    raise ValueError(f"nested deeper than {DEEPEST}")


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            content = stream.read(LARGEST + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(content) > LARGEST:
        raise CheckpointError(f"{path} has more than {LARGEST} bytes; no file of vtc is as large")
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the name {name[:80]!r} occurs twice")
        found[name] = value
    return found


def _loader() -> Any:
    """The safe loader of PyYAML, without names that occur twice, and without merge keys: those multiply unbounded."""
    import yaml

    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key, _ in node.value:
                name = str(key.value)
                if key.tag == "tag:yaml.org,2002:merge":
                    raise ValueError("merge keys (<<) are not read; write the values out")
                if name in seen:
                    raise ValueError(f"the name {name[:80]!r} occurs twice")
                seen.add(name)
            return super().construct_mapping(node, deep)

    return Strict
