"""A run from its settings (``describe``) to its files: ``run`` goes through one benchmark, ``runner`` asks its batches,
``suite`` takes several benchmarks one after the other.
"""
