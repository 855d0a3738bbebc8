"""Rows become samples; a row that cannot be used says where it is, why, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from vtc.errors import DataError
from vtc.eval.benchmarks import registry
from vtc.eval.benchmarks.jsonl import JSONL, MAX_LINE

EASY = Path(__file__).parents[4] / "shared" / "data" / "easy_vqa"
GOOD = {"id": "a", "image": "0.png", "question": "what ?", "answer": "red"}


def test_jsonl_reads_all_forms(write_rows):
    file = write_rows(
        [GOOD, {**GOOD, "id": 7, "image": ["0.png", "1.png"], "answer": ["red", "dark red"], "type": "t"}]
    )
    benchmark = JSONL(data=file)
    first, second = benchmark.samples()
    assert (first.id, first.answers, first.type) == ("a", ("red",), "")
    assert (second.id, second.answers, second.type) == ("7", ("red", "dark red"), "t")
    assert len(benchmark.pictures(second)) == 2
    assert benchmark.score("Dark red.", second) == 1.0


BAD = [
    (b'{"id": 1,', "not JSON"),
    (b"[" * 100_000, "not JSON"),
    (b'{"id": "\xff\xfe"}', "not UTF-8 at byte 8"),
    (b"[1, 2]", "expected an object"),
    (b"x" * (10 * MAX_LINE), "longer than"),
    ({**GOOD, "id": ""}, "id is ''"),
    ({**GOOD, "id": True}, "id is True"),
    ({**GOOD, "id": 1.5}, "id is 1.5"),
    ({**GOOD, "id": ["x"]}, "id is ['x']"),
    ({k: v for k, v in GOOD.items() if k != "image"}, "image is None"),
    ({**GOOD, "image": []}, "image is []"),
    ({**GOOD, "image": ["0.png"] * 500}, "500 pictures"),
    ({**GOOD, "question": " "}, "question is ' '"),
    ({**GOOD, "question": ["what"]}, "question is ['what']"),
    ({**GOOD, "answer": 3}, "answer is 3"),
    ({**GOOD, "answer": []}, "answer is []"),
    ({**GOOD, "id": "first"}, "used before"),
]


@pytest.mark.parametrize(("bad", "word"), BAD, ids=[word for _, word in BAD])
def test_a_bad_line_is_named_and_the_next_is_read(write_rows, bad, word):
    file = write_rows([{**GOOD, "id": "first"}, bad, {**GOOD, "id": "last"}])
    first, broken, last = JSONL(data=file).samples()
    assert (first.id, last.id) == ("first", "last") and not first.error and not last.error
    assert broken.id == "line:2" and broken.error.startswith("q.jsonl:2: ") and word in broken.error
    assert len(broken.error) < 400 and "\n" not in broken.error


def test_blank_lines_are_skipped_and_counted_as_lines(write_rows):
    file = write_rows([GOOD, b"", b"  ", {**GOOD, "id": "b"}])
    assert [s.where for s in JSONL(data=file).samples()] == ["q.jsonl:1", "q.jsonl:4"]


def test_pictures_are_loaded_late_and_their_errors_name_the_line(write_rows):
    file = write_rows([GOOD, {**GOOD, "id": "b", "image": "../secret.png"}, {**GOOD, "id": "c", "image": "none.png"}])
    benchmark = JSONL(data=file)
    _, outside, missing = benchmark.samples()
    with pytest.raises(DataError, match=r"q.jsonl:2: .*'\.\.'"):
        benchmark.pictures(outside)
    with pytest.raises(DataError, match=r"q.jsonl:3: .*does not exist"):
        benchmark.pictures(missing)


def test_missing_files_are_told():
    with pytest.raises(DataError, match="--data-dir"):
        list(registry["easy_vqa"]().samples())
    with pytest.raises(DataError, match="cannot be read"):
        list(JSONL(data=Path("none.jsonl")).samples())
    with pytest.raises(DataError, match="--data"):
        list(JSONL().samples())


def test_easy_vqa_refuses_other_files(tmp_path):
    (tmp_path / "test").mkdir()
    file = tmp_path / "test" / "questions.json"
    benchmark = registry["easy_vqa"]
    for text, word in (("{", "not JSON"), ("{}", "expected a list")):
        file.write_text(text)
        with pytest.raises(DataError, match=word):
            list(benchmark(data_dir=tmp_path).samples())
    file.write_text('[["q ?", "yes", 0], ["q ?", 3], ["q ?", "no", "../x"]]')
    assert [bool(s.error) for s in benchmark(data_dir=tmp_path).samples()] == [False, True, True]


@pytest.mark.skipif(not EASY.is_dir(), reason="the easy-VQA files are not beside the repository")
def test_easy_vqa_official_files():
    benchmark = registry["easy_vqa"](data_dir=EASY)
    samples = list(benchmark.samples())
    assert len(samples) == benchmark.count() == 9673 and not any(s.error for s in samples)
    assert sum(s.type == "yes/no" for s in samples) == 7136 and {s.type for s in samples} == {
        "yes/no",
        "color",
        "shape",
    }
    assert benchmark.pictures(samples[-1])[0].size == (64, 64)
