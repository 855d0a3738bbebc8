"""Weight compression: quantize, prune, factorise, delta and lossless, as passes over one calibration.

``pipeline`` takes a model through the passes of a ``recipe``, over the layers that ``select`` names. What passes know
of the model comes from ``calibration``, what they do with it from ``fitting``; layers are stored as ``codec`` says,
folders as ``formats``. Nothing here is loaded before it is asked for but what lets transformers read compressed
checkpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vtc.registry import handed_on
from vtc.weights.formats.hf import register_with_transformers

if TYPE_CHECKING:
    from vtc.weights.healing.incremental import in_steps as in_steps
    from vtc.weights.healing.incremental import incrementally as incrementally
    from vtc.weights.pipeline import compress as compress
    from vtc.weights.recipe import Recipe as Recipe

_NAMES = {
    "compress": "pipeline",
    "Recipe": "recipe",
    "in_steps": "healing.incremental",
    "incrementally": "healing.incremental",
}
_MODULES = {
    "activations": "activations",
    "delta": "deltas.delta",
    "deltas": "deltas",
    "distill": "healing.distill",
    "drank": "planning.drank",
    "gguf": "formats.gguf",
    "ladder": "planning.ladder",
    "lowrank": "fitting.lowrank",
    "plan": "planning.plan",
    "qat": "healing.qat",
    "rate": "planning.rate",
    "sensitivity": "calibration.sensitivity",
}

register_with_transformers()  # transformers finds third-party formats no other way
__getattr__, __dir__ = handed_on(__name__, _NAMES, _MODULES)
