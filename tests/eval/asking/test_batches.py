"""Batches: every sample once, borders that never move, like with like."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from PIL import Image

from tests.eval.tiny import picture
from vtc.eval.asking.batches import WINDOW, batches, length
from vtc.eval.asking.generate import Answerer
from vtc.eval.benchmarks import Benchmark, Sample
from vtc.eval.benchmarks.jsonl import JSONL
from vtc.eval.data.images import load_image, pixels


@dataclass(frozen=True)
class Given(Benchmark):
    rows: tuple[Sample, ...] = ()

    def samples(self):
        return iter(self.rows)


def ragged(count: int) -> Given:
    draw = random.Random(0)
    lengths = [draw.randint(1, 40) for _ in range(count)]
    return Given(rows=tuple(Sample(str(n), "red " * k, ("red",), (picture(n % 3),)) for n, k in enumerate(lengths)))


@pytest.mark.parametrize("count", [0, 1, 7, 4 * WINDOW, 4 * WINDOW + 1, 150])
def test_every_sample_once_in_windows(count):
    found = list(batches(ragged(count), 4))
    assert sorted(row for batch in found for row in batch.rows) == list(range(count))
    assert [batch.index for batch in found] == list(range(-(-count // 4)))
    for batch in found:
        assert batch.rows == sorted(batch.rows) == [int(sample.id) for sample in batch.samples]
        assert {row // (4 * WINDOW) for row in batch.rows} == {batch.index // WINDOW}
    assert found == list(batches(ragged(count), 4))


def test_no_more_than_a_window_is_read_ahead():
    read = []

    class Endless(Given):
        def samples(self):
            for n in range(10**9):
                read.append(n)
                yield Sample(str(n), "what ?")

    next(batches(Endless(), 4))
    assert len(read) == 4 * WINDOW


def test_padding_falls_to_a_third(vlm):
    answerer, benchmark = Answerer(*vlm, Benchmark.frame), ragged(128)

    def padded(groups):
        masks = [answerer.inputs([answerer.ready(s, benchmark) for s in group])["attention_mask"] for group in groups]
        return sum(int((mask == 0).sum()) for mask in masks)

    rows = benchmark.rows
    before = padded([rows[n : n + 8] for n in range(0, len(rows), 8)])
    after = padded([batch.samples for batch in batches(benchmark, 8)])
    print(f"padding tokens: {before} in consecutive batches, {after} in buckets")
    assert before > 1000 and after < before / 3


def test_pictures_count_first_then_their_size_then_words():
    small, large = Image.new("RGB", (32, 32)), Image.new("RGB", (64, 32))
    given = Given()
    ascending = [
        Sample("bad", "long " * 99, error="q:1: broken"),
        Sample("none", "long " * 99),
        Sample("small", "a", images=(small,)),
        Sample("words", "a b", images=(small,)),
        Sample("large", "a", images=(large,)),
        Sample("two", "a", images=(small, small)),
    ]
    lengths = [length(given, sample) for sample in ascending]
    assert lengths == sorted(set(lengths))


def test_sizes_come_from_headers(write_rows, rows, tmp_path):
    file = write_rows(rows[:2])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert pixels("0.png", tmp_path) == load_image("0.png", tmp_path).width * 32 == 40 * 32
    assert [pixels(name, tmp_path) for name in ("broken.png", "gone.png", "../0.png")] == [0, 0, 0]
    benchmark = JSONL(data=file)
    assert [benchmark.pixels(sample) for sample in benchmark.samples()] == [1280, 1280]
