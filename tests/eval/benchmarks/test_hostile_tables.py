"""Tables that unpack to more than they are: their rows become errors before anything is unpacked, the others stay."""

from __future__ import annotations

import io
import re

import pytest

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

from tests.eval.tiny import picture  # noqa: E402
from vtc.eval.benchmarks import forms, rows  # noqa: E402
from vtc.eval.benchmarks.base import Sample  # noqa: E402
from vtc.eval.benchmarks.public import unique  # noqa: E402
from vtc.eval.benchmarks.table import Parquet  # noqa: E402


def png() -> bytes:
    stream = io.BytesIO()
    picture(0).save(stream, "PNG")
    return stream.getvalue()


def table(count=1, **columns):
    whole = {"index": list(range(count)), "image": [png()] * count, "question": ["what ?"] * count}
    return whole | {"answer": ["red"] * count} | columns


HUGE = "x" * 64_000_000
BOMBS = [  # columns of one row; words of its error
    ({"question": [HUGE]}, "column 'question' unpacks .* to 64,0"),
    ({"answer": [HUGE]}, "column 'answer' unpacks"),
    ({"image": [HUGE.encode()]}, "column 'image' unpacks"),
    ({"other": [HUGE]}, "column 'other' unpacks"),
    ({"answer": [["red"] * 20_000]}, "column 'answer.list.element' has 20,000 values in 1 rows"),
    ({"other": [[[1] * 200] * 200]}, "column 'other.*' has 40,000 values in 1 rows"),
]


@pytest.mark.parametrize("codec", ["zstd", "gzip"])
@pytest.mark.parametrize(("columns", "words"), BOMBS, ids=[words for _, words in BOMBS])
def test_a_bomb_is_an_error_and_never_unpacked(columns, words, codec, tmp_path, monkeypatch):
    """A row group before it and one after are read; that of the bomb is not."""
    file, read = tmp_path / "q.parquet", []
    kinds = pa.table(table(**columns)).schema
    good = {key: ["red"] if key == "answer" and "answer" not in columns else value for key, value in table().items()}
    if "other" in columns:
        good["other"] = [columns["other"][0][:1]]
    if isinstance(columns.get("answer", [""])[0], list):
        good["answer"] = [["red"]]
    with pq.ParquetWriter(file, kinds, compression=codec) as writer:
        writer.write_table(pa.table(good | {"index": [10]}, schema=kinds))
        writer.write_table(pa.table(table(**columns) | {"index": [11]}, schema=kinds))
        writer.write_table(pa.table(good | {"index": [12]}, schema=kinds))
    real = pq.ParquetFile.iter_batches

    def watched(self, **options):
        read.extend(options["row_groups"])
        return real(self, **options)

    assert rows.UNPACKED <= 256_000_000
    monkeypatch.setattr(rows, "UNPACKED", 16_000_000)  # a smaller bomb takes less time to make
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    samples = list(Parquet(data=file).samples())
    assert read == [0, 2] and file.stat().st_size < 400_000
    assert [bool(s.error) for s in samples] == [False, True, False] and samples[2].id == "12"
    assert re.search(words, samples[1].error)
    assert samples[1].error.startswith("q.parquet: row 2: ")


def test_large_and_repetitive_tables_are_no_bombs(tmp_path):
    """1,000 rows with the same words, pictures of 40 MB together, ten answers a row."""
    import numpy as np

    noise = np.random.default_rng(0).bytes(40_000)
    many = table(1000, image=[noise] * 500 + [noise[::-1]] * 500, answer=[["red"] * 10] * 1000)
    pq.write_table(pa.table(many), tmp_path / "q.parquet", compression="zstd", use_dictionary=False)
    samples = list(Parquet(data=tmp_path / "q.parquet").samples())
    assert len(samples) == 1000 and not any(s.error for s in samples)


def test_a_text_that_is_not_utf8_spoils_its_own_row_alone(tmp_path):
    words = pa.array([b"what ?", b"\xff\xfe", b"who ?"]).view(pa.string())
    whole = pa.table(table(3)).drop_columns("question").append_column("question", words)
    pq.write_table(whole, tmp_path / "q.parquet")
    samples = list(Parquet(data=tmp_path / "q.parquet").samples())
    assert [bool(s.error) for s in samples] == [False, True, False] and [s.id for s in samples] == ["0", "row:1", "2"]
    assert samples[1].error.startswith("q.parquet: row 2: cannot be read (UnicodeDecodeError")


def test_what_a_broken_row_is_called_may_be_an_id():
    broken = Sample("row:1", where="f:1", error="f:1: broken")
    others = [Sample("row:1", where="f:2"), Sample("row:1", where="f:3"), broken]
    assert [(s.id, bool(s.error)) for s in unique([broken, *others])] == [
        ("row:1", True), ("row:1", False), ("again:2", True), ("row:1", True),
    ]  # fmt: skip


def test_memory_that_is_not_there_is_told(tmp_path, monkeypatch):
    pq.write_table(pa.table(table()), tmp_path / "q.parquet")

    def fails(self, **options):
        raise pa.lib.ArrowMemoryError("realloc failed")

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", fails)
    with pytest.raises(rows.DataError, match=r"q.parquet cannot be read as parquet \(ArrowMemoryError"):
        list(rows.parquet_rows(tmp_path / "q.parquet"))


@pytest.mark.parametrize("text", ["[" + "1," * 600_000 + "]", "[" * 2_000_000], ids=["long", "deep"])
def test_a_spelled_list_has_a_length(text, monkeypatch):
    monkeypatch.setattr(forms.ast, "literal_eval", lambda _: pytest.fail("was read"))
    assert forms.listed(text) == [text]
