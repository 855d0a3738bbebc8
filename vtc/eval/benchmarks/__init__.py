"""Benchmarks, one a file: rows -> pictures, rows -> question, (answer, row) -> score."""

from __future__ import annotations

from vtc.eval.benchmarks.base import Benchmark, Sample
from vtc.registry import Registry

registry: Registry[type[Benchmark]] = Registry("benchmark", "vtc.eval.benchmarks")
register = registry.register

__all__ = ["Benchmark", "Sample", "register", "registry"]
