"""Vision-language models that spend fewer tokens on pictures. ``vtc.patch(model)`` is all it takes.

Nothing heavy is imported and nothing happens at import: each name is loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtc.registry import handed_on
from vtc.version import __version__ as __version__

_WHERE = {
    "patch": "patching.api",
    "unpatch": "patching.api",
    "patched": "patching.api",
    "patch_of": "patching.api",
    "report": "patching.api",
    "remember": "patching.remember",
    "recall": "patching.remember",
    "encode": "patching.encode",
    "calibrate": "patching.calibration",
    "calibrate_spend": "patching.calibration",
    "compress": "weights.pipeline",
    "save": "checkpoint.save_load",
    "load": "checkpoint.save_load",
    "render_text": "pages",
    "pages_needed": "pages",
    "Budget": "tokens",
    "VisionTokens": "tokens",
    "Reduction": "tokens",
}
_MODULES = {name: name for name in ("methods", "errors", "weights")}

if TYPE_CHECKING:
    from vtc import errors as errors
    from vtc import methods as methods
    from vtc import weights as weights
    from vtc.checkpoint.save_load import load as load
    from vtc.checkpoint.save_load import save as save
    from vtc.pages import pages_needed as pages_needed
    from vtc.pages import render_text as render_text
    from vtc.patching.api import patch as patch
    from vtc.patching.api import patch_of as patch_of
    from vtc.patching.api import patched as patched
    from vtc.patching.api import report as report
    from vtc.patching.api import unpatch as unpatch
    from vtc.patching.calibration import calibrate as calibrate
    from vtc.patching.calibration import calibrate_spend as calibrate_spend
    from vtc.patching.encode import encode as encode
    from vtc.patching.remember import recall as recall
    from vtc.patching.remember import remember as remember
    from vtc.tokens import Budget as Budget
    from vtc.tokens import Reduction as Reduction
    from vtc.tokens import VisionTokens as VisionTokens
    from vtc.weights.pipeline import compress as compress

__getattr__, __dir__ = handed_on(__name__, _WHERE, _MODULES)
