"""Batches of samples that need little padding: the same ones whatever is answered already, for any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

from vtc.eval.benchmarks import Benchmark, Sample

WINDOW = 16  # batches whose samples are sorted together; more would pad less and hold more samples


@dataclass(frozen=True)
class Batch:
    """Samples that are asked at once, always the same ones. ``rows``: their places in the benchmark, ascending."""

    index: int
    rows: list[int]
    samples: list[Sample]


def batches(benchmark: Benchmark, size: int) -> Iterator[Batch]:
    """Every sample once. Each ``WINDOW * size`` samples in a row are sorted by length and cut into batches, longest
    first, so that what does not fit the memory is met early."""
    numbered, index = enumerate(benchmark.samples()), count()
    while window := list(islice(numbered, WINDOW * size)):
        window.sort(key=lambda each: length(benchmark, each[1]), reverse=True)
        for start in range(0, len(window), size):
            rows, samples = zip(*sorted(window[start : start + size], key=lambda each: each[0]), strict=True)
            yield Batch(next(index), list(rows), list(samples))


def length(benchmark: Benchmark, sample: Sample) -> tuple[int, int, int]:
    """Sorts as the prompt's tokens do, without counting them: pictures, their size in steps of the square root of two
    (models that scale pictures to one size need the rest to decide), characters of the question. Bad samples are
    shortest."""
    if sample.error:
        return 0, 0, 0
    pixels = benchmark.pixels(sample)
    return len(sample.images), round(2 * math.log2(pixels)) if pixels else 0, len(sample.question)
