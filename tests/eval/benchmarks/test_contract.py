"""What every registered benchmark must do. One that has no files in tests/eval/public.py fails here."""

from __future__ import annotations

import json
import socket
from itertools import islice
from pathlib import Path

import pytest

from tests.eval.public import FILES, benchmark_of
from tests.own import walked
from vtc.eval.benchmarks import Benchmark, registry
from vtc.eval.report.catalogue import benchmark_table

WRONG = ("?", "yes", "no", "(A)", "(B)")  # POPE's parser takes anything for a yes; at most one of these is right
DRAWN = ("scenes", "read_pages")  # need no files


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_):
        pytest.fail("the network was asked")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_the_network_is_watched(offline):
    with pytest.raises(pytest.fail.Exception, match="network"):
        socket.create_connection(("localhost", 9))


@pytest.mark.parametrize("name", walked(registry))
def test_contract(name, tmp_path, offline):
    assert name in {*FILES, *DRAWN, "jsonl", "tsv", "easy_vqa"}, "write its rows in tests/eval/public.py"
    limit = 9 if name in DRAWN else None
    benchmark = benchmark_of(name, tmp_path, limit=limit)
    samples = list(benchmark.samples())
    assert isinstance(benchmark, Benchmark) and benchmark.name == name and benchmark.split == benchmark.splits[0]
    assert len(samples) >= 2 and benchmark.count() in (None, len(samples))
    assert len({s.id for s in samples}) == len(samples)
    again = registry[name](data=benchmark.data, data_dir=benchmark.data_dir, limit=limit)
    assert [(s.id, s.question, s.answers) for s in again.samples()] == [(s.id, s.question, s.answers) for s in samples]
    assert json.loads(json.dumps(benchmark.fingerprint())) == again.fingerprint()
    for sample in samples:
        assert sample.id and sample.question and sample.answers and sample.where and not sample.error
        best = max(benchmark.score(answer, sample) for answer in sample.answers)
        credits = benchmark.credits(sample.answers)
        assert best == 1.0 == max(credits.values())
        assert min(benchmark.score(reply, sample) for reply in WRONG) == 0.0
        found = benchmark.pictures(sample)
        assert found and {p.mode for p in found} == {"RGB"}
        known = name not in ("easy_vqa",)  # whose pictures are of one size
        assert benchmark.pixels(sample) == (sum(p.width * p.height for p in found) if known else 0)
    lines = [
        {"id": s.id, "type": s.type, "group": s.group, "expected": [*s.answers], "answer": s.answers[0], "score": 1.0}
        for s in samples
    ]
    metrics = benchmark.aggregate(iter(lines))
    assert metrics == benchmark.aggregate(reversed(lines)) and all(v == v for v in metrics.values())


@pytest.mark.parametrize("name", walked(registry))
@pytest.mark.parametrize("limit", [1, 2])
def test_limit(name, limit, tmp_path):
    whole = list(islice(benchmark_of(name, tmp_path, limit=9 if name in DRAWN else None).samples(), 50))
    benchmark = registry[name](
        data=next(tmp_path.glob("q*.*"), None), data_dir=None if name in DRAWN else tmp_path, limit=limit
    )
    taken = list(benchmark.samples())
    units = {benchmark.unit(s) for s in taken} if getattr(benchmark, "grouped", False) else taken
    assert len(units) == limit and not any(s.error for s in taken)
    if name not in DRAWN:
        assert [s for s in whole if s.id in {t.id for t in taken}] == taken
    if units is not taken:
        assert {s.id for s in whole if benchmark.unit(s) in units} == {s.id for s in taken}, "whole units"


@pytest.mark.parametrize("name", [n for n in FILES if n != "parquet"])
def test_samples_are_streamed(name, tmp_path, monkeypatch):
    """The first sample comes before the last row is read."""
    benchmark = benchmark_of(name, tmp_path)
    read, stored = [], type(benchmark).stored

    def watched(self):
        for row in stored(self):
            read.append(row)
            yield row

    monkeypatch.setattr(type(benchmark), "stored", watched)
    next(iter(benchmark.samples()))
    assert len(read) == 1


def test_the_document_has_the_table():
    page = (Path(__file__).parents[3] / "docs" / "benchmarks.md").read_text("utf-8")
    assert benchmark_table() in page, "put what `vtc benchmarks` prints into docs/benchmarks.md"
