"""``config.json``: what a run depends on, with a checksum, the same for both halves of one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zlib import crc32

from vtc.errors import DataError, RunRefused
from vtc.files.atomic import finite, write_json
from vtc.files.strict import read_json

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
    try:
        there = stored(path)
    except ValueError as error:
        raise RunRefused(f"{path} is damaged ({error}); {REMEDY}") from None
    there.pop("check", None)
    keys = [key for key in sorted({*there, *settings} - set(FREE)) if there.get(key) != settings.get(key)]
    if keys:
        changes = "; ".join(f"{key}: {there.get(key)!r:.160} there, {settings.get(key)!r:.160} asked" for key in keys)
        raise RunRefused(f"{folder} holds a run with other settings ({changes}); {REMEDY}")


def run_settings(folder: Path) -> dict[str, Any]:
    """The settings of an evaluation, each of its kind; without a checksum (a run from before there were any) there are
    no others. Raises ``DataError``."""
    try:
        settings = stored(folder / "config.json")
        summed = settings.pop("check", None)
        for name, value in settings.items():
            if name not in KINDS and summed is None or not isinstance(value, KINDS.get(name, object)):
                raise ValueError(f"{name!a:.80} is {value!r:.80}")
        if missing := [name for name in ("benchmark", "cells") if name not in settings]:
            raise ValueError(f"no {missing[0]} in it")
    except ValueError as error:
        raise DataError(
            f"{folder} is no run folder (config.json: {error}); give a folder that vtc eval wrote; "
            "of several benchmarks the folder of one"
        ) from None
    return settings


def stored(path: Path) -> dict[str, Any]:
    """What stands in ``path``: an object with the right checksum (``check``), or without one. Raises ``ValueError``."""
    try:
        settings = read_json(path)
        if "check" in settings and settings["check"] != checksum(settings):
            raise ValueError("it was changed since it was written: its checksum is another")
    except FileNotFoundError as error:
        raise ValueError(error.strerror) from None
    return settings


def as_stored(settings: dict[str, Any]) -> dict[str, Any]:
    """As they come back from a file."""
    return json.loads(json.dumps(finite(settings)))


def checksum(settings: dict[str, Any]) -> str:
    """CRC-32 of all but the checksum as JSON with sorted keys, hex."""
    rest = {key: value for key, value in settings.items() if key != "check"}
    return f"{crc32(json.dumps(rest, sort_keys=True).encode()):08x}"
