"""What fewer tokens cost: benchmarks, measurement, tables and figures. ``vtc eval`` is the way in."""
