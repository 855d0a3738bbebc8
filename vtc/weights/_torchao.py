"""torchao, where it is installed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vtc.errors import VTCError


def torchao(module: str) -> Any:
    """``torchao.<module>``. Raises ``VTCError`` where torchao is missing."""
    try:
        return import_module(f"torchao.{module}")
    except ImportError as error:
        raise VTCError(f"this needs the package torchao ({error}): pip install 'vtc-vlm[ao]'") from None
