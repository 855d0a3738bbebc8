"""Weight compression: quantize, prune, factorise, delta and lossless, as passes over one calibration."""

from vtc.weights.compress import compress as compress
from vtc.weights.formats.hf import register
from vtc.weights.healing.incremental import in_steps as in_steps
from vtc.weights.healing.incremental import incrementally as incrementally
from vtc.weights.recipe import Recipe as Recipe

register()  # transformers finds third-party formats no other way
