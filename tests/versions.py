"""What older versions that are allowed cannot do: docs/how-it-works.md names it, `make test-oldest` runs them."""

from __future__ import annotations

from importlib.metadata import version

import pytest


def before(package: str, *first: int) -> bool:
    """Whether ``package`` is older than its release ``first``."""
    return tuple(int(part) for part in version(package).split(".")[: len(first)]) < first


def skip_before(package: str, *first: int, why: str) -> None:
    if before(package, *first):
        pytest.skip(f"{package} before {'.'.join(map(str, first))}: {why}")
