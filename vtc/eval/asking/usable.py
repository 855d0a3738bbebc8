"""The samples of a benchmark that can be asked, for what needs a few of them: measurements, pictures of a report."""

from __future__ import annotations

from collections.abc import Container, Iterator

from vtc.errors import DataError
from vtc.eval.asking.generate import Answerer, Asked
from vtc.eval.benchmarks import Benchmark


def usable(answerer: Answerer, benchmark: Benchmark, failed: Container[int] = ()) -> Iterator[Asked]:
    """Ready to be asked, in order; without those that cannot be, and without the rows that ``failed`` in a run."""
    for row, sample in enumerate(benchmark.samples()):
        if row in failed:
            continue
        try:
            yield answerer.ready(sample, benchmark)
        except DataError:
            continue
