"""Which entries of a registry the suites walk: the library's own, whatever else is installed beside it; or those named
with ``--entry``, so that somebody's method, signal or benchmark meets the contract suites, too."""

from __future__ import annotations

from typing import Any

from vtc.registry import Registry

NAMED: list[str] = []  # by conftest.py, before a suite is imported


def known(registry: Registry) -> dict[str, Any]:
    """Name -> entry, of the library's own entries and those that were named."""
    found = {name: entry for name, entry in registry.items() if _module(entry).partition(".")[0] == "vtc"}
    return found | {name: registry[name] for name in NAMED if name in registry}


def walked(registry: Registry) -> dict[str, Any]:
    """Name -> entry, of those the suites are run on."""
    found = known(registry)
    return {name: found[name] for name in NAMED if name in found} or found


def _module(entry: Any) -> str:
    return getattr(entry, "__module__", type(entry).__module__)
