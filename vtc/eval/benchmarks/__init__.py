"""Benchmarks, one a file: rows -> pictures, rows -> question, (answer, row) -> score."""

from __future__ import annotations

from pathlib import Path

from vtc.eval.benchmarks.base import Benchmark, Sample
from vtc.registry import Registry

registry: Registry[type[Benchmark]] = Registry("benchmark", "vtc.eval.benchmarks", group="vtc.benchmarks")
register = registry.register


def reader(data: Path) -> str:
    """The benchmark that reads a file of one's own, by its suffix: TSV, parquet, or else a JSON object a line."""
    return {".tsv": "tsv", ".parquet": "parquet"}.get(data.suffix.lower(), "jsonl")


__all__ = ["Benchmark", "Sample", "reader", "register", "registry"]
