"""Weight compression: quantize, prune, factorise, delta and lossless, as passes over one calibration."""
