"""Vision-language models that spend fewer tokens on pictures. ``vtc.patch(model)`` is all it takes.

Nothing heavy is imported and nothing happens at import: each name is loaded on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_WHERE = {
    "patch": "patching",
    "unpatch": "patching",
    "patched": "patching",
    "patch_of": "patching",
    "report": "patching",
    "calibrate": "calibration",
    "calibrate_spend": "calibration",
    "compress": "weights.compress",
    "save": "checkpoint",
    "load": "checkpoint",
    "render_text": "pages",
    "pages_needed": "pages",
    "Budget": "tokens",
    "VisionTokens": "tokens",
    "Reduction": "tokens",
}
_MODULES = ("methods", "errors", "weights")

if TYPE_CHECKING:
    from vtc import errors as errors
    from vtc import methods as methods
    from vtc import weights as weights
    from vtc.calibration import calibrate as calibrate
    from vtc.calibration import calibrate_spend as calibrate_spend
    from vtc.checkpoint import load as load
    from vtc.checkpoint import save as save
    from vtc.pages import pages_needed as pages_needed
    from vtc.pages import render_text as render_text
    from vtc.patching import patch as patch
    from vtc.patching import patch_of as patch_of
    from vtc.patching import patched as patched
    from vtc.patching import report as report
    from vtc.patching import unpatch as unpatch
    from vtc.tokens import Budget as Budget
    from vtc.tokens import Reduction as Reduction
    from vtc.tokens import VisionTokens as VisionTokens
    from vtc.weights.compress import compress as compress


def __getattr__(name: str):
    if name in _WHERE:
        return getattr(importlib.import_module(f"vtc.{_WHERE[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"vtc.{name}")
    raise AttributeError(f"module 'vtc' has no attribute {name!r}; it has {', '.join([*_WHERE, *_MODULES])}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_WHERE, *_MODULES])
