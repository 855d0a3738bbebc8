"""One's own tables and lines: options with gaps, rows that are cut off, byte-order marks, rows without ids."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.eval.public import png
from tests.eval.tiny import picture
from vtc.errors import DataError
from vtc.eval.benchmarks import registry
from vtc.eval.benchmarks.base import check_rows
from vtc.eval.benchmarks.public import LETTER
from vtc.eval.benchmarks.rows import json_rows

BOM = b"\xef\xbb\xbf"


@pytest.fixture(params=["tsv", "parquet"])
def table(request, tmp_path):
    """A table of the given rows; pictures are files beside it."""
    picture(0).save(tmp_path / "0.png")

    def make(*rows):
        full = [{"index": str(n), "image": "0.png", "question": "Which?"} | row for n, row in enumerate(rows)]
        names = list(dict.fromkeys(name for row in full for name in row))
        file = tmp_path / f"q.{request.param}"
        if request.param == "parquet":
            pq.write_table(pa.Table.from_pylist(full, pa.schema([(name, pa.string()) for name in names])), file)
        else:
            lines = ["\t".join(names), *("\t".join(row.get(name, "") for name in names) for row in full)]
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return registry[request.param](data=file)

    return make


@pytest.mark.parametrize(
    ("options", "answer", "shown"),
    [
        ({"A": "cat", "B": "dog"}, "B", "A. cat\nB. dog"),
        ({"B": "cat", "C": "dog", "D": "bird"}, "D", "B. cat\nC. dog\nD. bird"),
        ({"A": "cat", "C": "dog"}, "c", "A. cat\nC. dog"),
        ({letter: f"x{letter}" for letter in "ABCDE"}, "E", "A. xA\nB. xB\nC. xC\nD. xD\nE. xE"),
        ({letter: f"x{letter}" for letter in "AZ"}, "Z", "A. xA\nZ. xZ"),
        ({"D": "cat"}, "D", "D. cat"),
        ({"A": " ", "B": " cat ", "C": "dog"}, "B", "B. cat\nC. dog"),
    ],
)
def test_the_options_that_are_there_under_their_own_letters(table, options, answer, shown):
    benchmark = table({"answer": answer} | options, {"answer": "red"})
    sample, open_one = benchmark.samples()
    assert not sample.error and sample.question == f"Which?\n{shown}{LETTER}"
    assert sample.answers == (answer.upper(),) and open_one.question == "Which?"
    assert benchmark.score(answer.upper(), sample) == benchmark.score(options[answer.upper()], sample) == 1
    others = set(options) - set(sample.answers)
    assert [benchmark.score(letter, sample) for letter in [*others, "?"]] == [0] * (len(others) + 1)


def test_an_answer_that_is_no_option_names_row_and_column(table):
    good, gap, text = table(
        {"answer": "A", "A": "cat", "C": "dog"},
        {"answer": "B", "A": "cat", "C": "dog"},
        {"answer": "dog", "A": "cat", "C": "dog"},
    ).samples()
    assert not good.error
    assert "row 2: column 'answer' is 'B', not an option's letter; there are A, C" in gap.error
    assert "row 3: column 'answer' is 'dog'" in text.error


HEAD = "index\timage\tquestion\tanswer\tA\tB\tcategory"
WHOLE = "0\t0.png\tWhich?\tB\tcat\tdog\tpets"


def tsv(tmp_path, *lines, start=""):
    (tmp_path / "q.tsv").write_text(start + "\n".join([HEAD, *lines]) + "\n", encoding="utf-8")
    return registry["tsv"](data=tmp_path / "q.tsv")


@pytest.mark.parametrize(
    ("line", "column"),
    [
        ("1\t0.png\tWhich?\tB", "A"),
        ("1\t0.png\tWhich?\tB\tcat", "B"),
        ("1\t0.png\tWhich?\tB\tcat\tdog", "category"),
        ("1\t0.png\tWhich?", "answer"),
    ],
)
def test_a_row_that_is_cut_off_is_told(tmp_path, line, column):
    first, cut, last = tsv(tmp_path, WHOLE, line, WHOLE.replace("0", "2", 1)).samples()
    assert not first.error and not last.error and first.answers == ("B",)
    assert cut.error.startswith(f"q.tsv: row 2: column {column!r} is missing, the row ends before it")


def test_a_row_that_is_too_long_is_told_and_the_others_are_read(tmp_path):
    first, long, last = tsv(
        tmp_path, WHOLE, WHOLE.replace("0", "1", 1) + "\tmore", WHOLE.replace("0", "2", 1)
    ).samples()
    assert not first.error and not last.error
    assert "row 2: column 'category' is the last of 7, and the row has 8 fields" in long.error


def test_other_mistakes_of_a_tsv_file(tmp_path):
    with pytest.raises(DataError, match="a quote that is opened .* is never closed"):
        list(tsv(tmp_path, WHOLE, '1\t0.png\t"Which?\tB\tcat\tdog\tpets', WHOLE).samples())
    (tmp_path / "q.tsv").write_text(HEAD + "\tA\n" + WHOLE + "\tx\n")
    with pytest.raises(DataError, match="column 'A' stands twice"):
        list(registry["tsv"](data=tmp_path / "q.tsv").samples())
    (tmp_path / "q.tsv").write_bytes(HEAD.encode("utf-16"))
    with pytest.raises(DataError, match="cannot be read as TSV .*utf-8"):
        list(registry["tsv"](data=tmp_path / "q.tsv").samples())


def test_a_tsv_file_from_other_systems(tmp_path):
    """A byte-order mark, Windows' line ends, no line end at the end, blank lines, quotes, a picture of megabytes."""
    import base64

    large = base64.b64encode(png(0, (1000, 500))).decode()
    assert len(large) > 1_000_000
    quoted = f'1\t{large}\t"Say ""no""\tor\nnot?"\tB\t"5"" pipe"\tdog\t'
    (tmp_path / "q.tsv").write_bytes(BOM + "\r\n".join([HEAD, WHOLE, "", quoted]).encode())
    benchmark = registry["tsv"](data=tmp_path / "q.tsv")
    first, second = benchmark.samples()
    assert first.id == "0" and not first.error and not second.error
    assert second.question.startswith('Say "no"\tor\nnot?\nA. 5" pipe\nB. dog')
    assert benchmark.pictures(second)[0].size == (1000, 500)


def line(**row):
    return json.dumps({"image": "0.png", "question": "what ?", "answer": "red"} | row).encode()


def jsonl(tmp_path, data):
    picture(0).save(tmp_path / "0.png")
    (tmp_path / "q.jsonl").write_bytes(data)
    return registry["jsonl"](data=tmp_path / "q.jsonl")


@pytest.mark.parametrize(
    "data",
    [
        BOM + line(id="a") + b"\n" + line(id="b"),
        BOM + line(id="a") + b"\r\n" + line(id="b") + b"\r\n",
        BOM + b"\n" + line(id="a") + b"\n" + line(id="b"),
        BOM + line(id="a") + b"\n" + BOM + line(id="b"),  # two files put together
    ],
    ids=["first", "windows", "alone", "middle"],
)
def test_a_byte_order_mark_loses_no_row(tmp_path, data):
    benchmark = jsonl(tmp_path, data)
    assert [(s.id, s.error) for s in benchmark.samples()] == [("a", ""), ("b", "")] and benchmark.count() == 2
    (tmp_path / "test.jsonl").write_bytes(BOM + line(id="a"))
    assert [row["id"] for row in json_rows(tmp_path / "test.jsonl")] == ["a"]


def test_a_line_without_id_has_its_number(tmp_path):
    benchmark = jsonl(tmp_path, b"\n".join([line(), b"", line(id=None), line(id="x"), line()]))
    assert [(s.id, s.error) for s in benchmark.samples()] == [("1", ""), ("3", ""), ("x", ""), ("5", "")]
    clash = list(jsonl(tmp_path, line(id=2) + b"\n" + line()).samples())[1]
    assert "q.jsonl:2: id '2' was used before" in clash.error


def test_all_rows_are_checked_before_a_run(tmp_path):
    check_rows(jsonl(tmp_path, line()))
    check_rows(registry["scenes"](limit=3))
    broken = jsonl(tmp_path, line() + b"\n{\n" + line() + b"\n[]\n" + line(answer=3))
    with pytest.raises(
        DataError, match=r"3 of 5 rows of q.jsonl .* q.jsonl:2: .*; q.jsonl:4: .*; q.jsonl:5: .*take out these rows"
    ):
        check_rows(broken)
    check_rows(broken, allow_errors=True)
    for data, told in ((b"{\n[]", "no row of q.jsonl can be used"), (b"\n", "q.jsonl holds no questions")):
        with pytest.raises(DataError, match=told):
            check_rows(jsonl(tmp_path, data), allow_errors=True)
    with pytest.raises(DataError, match="no picture of the first 2 questions .* q.jsonl:1: picture 'x.png'"):
        check_rows(jsonl(tmp_path, line(image="x.png") + b"\n" + line(image="y.png")))
    check_rows(jsonl(tmp_path, line(image="x.png") + b"\n" + line()))
