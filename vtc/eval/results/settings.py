"""``config.json``: what a run depends on, with a checksum, the same for both halves of one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zlib import crc32

from vtc.errors import RunRefused
from vtc.files.atomic import finite, write_json

FREE = ("model",)  # recorded, but may be spelled differently when a run goes on
KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("model", "model_class", "weights", "dtype", "device", "attention", "processor", "prompt"), str),
    **dict.fromkeys(("schema", "max_new_tokens", "batch_size", "window"), int),
    **dict.fromkeys(("benchmark", "versions"), dict),
    "cells": list,
}
REMEDY = "give another --output, or --overwrite"


def same_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write ``settings`` into an empty folder; in a used one they must be the same. Raises ``RunRefused``."""
    path, settings = folder / "config.json", as_stored(settings)
    if not path.exists():
        if (folder / "results.jsonl").exists():
            raise RunRefused(f"{folder} has results but no config.json; {REMEDY}")
        return write_json(path, settings | {"check": checksum(settings)})
    there = read_settings(path)
    keys = [key for key in sorted({*there, *settings} - set(FREE)) if there.get(key) != settings.get(key)]
    if keys:
        changes = "; ".join(f"{key}: {there.get(key)!r:.160} there, {settings.get(key)!r:.160} asked" for key in keys)
        raise RunRefused(f"{folder} holds a run with other settings ({changes}); {REMEDY}")


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in ``path``, whose checksum fits; of a run from before there were checksums, of the right kinds.
    Raises ``RunRefused``."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError(f"a {type(settings).__name__}, not an object")
        check(settings)
    except RecursionError:
        raise RunRefused(f"{path} is damaged (nested too deeply); {REMEDY}") from None
    except (OSError, ValueError) as error:
        raise RunRefused(f"{path} is damaged ({' '.join(str(error).split())[:200]}); {REMEDY}") from None
    return settings


def check(settings: dict[str, Any]) -> None:
    """Takes the checksum out. Raises ``ValueError`` where it does not fit, and for settings that cannot be a run's."""
    summed = "check" in settings
    if summed and settings.pop("check") != checksum(settings):
        raise ValueError("it was changed since it was written: its checksum is another")
    if "cells" not in settings:
        raise ValueError("cells is missing")
    for name, value in settings.items():
        if name not in KINDS and not summed:
            raise ValueError(f"{name!a:.80} is no setting")
        if name in KINDS and not isinstance(value, KINDS[name]):
            raise ValueError(f"{name} is {value!r:.80}")


def as_stored(settings: dict[str, Any]) -> dict[str, Any]:
    """As they come back from a file."""
    return json.loads(json.dumps(finite(settings)))


def checksum(settings: dict[str, Any]) -> str:
    """CRC-32 of the settings as JSON with sorted keys, hex."""
    return f"{crc32(json.dumps(settings, sort_keys=True).encode()):08x}"
