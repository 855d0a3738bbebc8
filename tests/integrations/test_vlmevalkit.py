"""The TSV for VLMEvalKit, read back the way its loader reads it: by pandas with its defaults, pictures from base64."""

from __future__ import annotations

import ast
import base64
import csv
import io
import json
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.eval.tiny import picture
from vtc.cli import app
from vtc.errors import DataError
from vtc.eval.benchmarks import Benchmark, Sample
from vtc.eval.benchmarks.scenes import Scenes
from vtc.integrations.vlmevalkit import MISSING, export

PICTURE = (picture(0),)


@dataclass(frozen=True)
class Asked(Sample):
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Given(Benchmark):
    """Samples that a test makes."""

    given: list[Sample] = field(default_factory=list)

    def samples(self):
        return iter(self.given)


def plain(n=0, question="what is it ?", answers=("a cat",), images=PICTURE, **more):
    return Asked(f"q/{n}", question, answers, images, where=f"here:{n}", **more)


def read(file):
    csv.field_size_limit(10**8)
    with open(file, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


def decoded(text):
    return Image.open(io.BytesIO(base64.b64decode(text, validate=True)))


def test_questions_and_pictures_come_back(tmp_path):
    source = Scenes(limit=9)
    assert export(source, tmp_path / "s.tsv") == 9
    rows = read(tmp_path / "s.tsv")
    assert list(rows[0]) == ["index", "id", "image", "question", "answer", "category", "l2-category"]
    assert [row["index"] for row in rows] == [str(n) for n in range(1, 10)]
    for row, sample in zip(rows, source.samples(), strict=True):
        told = (row["id"], row["question"], row["answer"], row["category"], row["l2-category"])
        assert told == (sample.id, sample.question, sample.answers[0], sample.type, sample.group)
        image = decoded(row["image"])
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), np.asarray(sample.images[0]))


def test_options_are_columns_and_leave_the_question(tmp_path):
    question = "what is it ?\nA. a cat\nB. None\nAnswer with the letter."
    choice = plain(0, question, ("B",), options=("a cat", "None"))
    export(Given(given=[choice, plain(1)]), tmp_path / "m.tsv")
    first, second = read(tmp_path / "m.tsv")
    assert (first["question"], first["A"], first["answer"]) == ("what is it ?", "a cat", "B")
    assert (second["question"], second["A"], second["answer"]) == ("what is it ?", "", "a cat")
    assert "C" not in first and "category" not in first


def test_without_options_there_is_no_column_that_means_multiple_choice(tmp_path):
    export(Given(given=[plain()]), tmp_path / "v.tsv")
    assert not {"A", "B"} & set(read(tmp_path / "v.tsv")[0])


@pytest.mark.parametrize("text", sorted(MISSING))
def test_pandas_takes_no_text_for_a_missing_value(tmp_path, text):
    pandas = pytest.importorskip("pandas")
    lines = "A. " + text + "\nB. two"
    export(Given(given=[plain(0, f"which ?\n{lines}", ("A",), options=(text, "two"), type=text)]), tmp_path / "p.tsv")
    row = pandas.read_csv(tmp_path / "p.tsv", sep="\t").iloc[0]
    assert row["A"].strip() == row["category"].strip() == text
    assert row["question"] == "which ?"


def test_the_list_of_missing_values_is_that_of_pandas():
    parsers = pytest.importorskip("pandas._libs.parsers")
    assert MISSING == parsers.STR_NA_VALUES - {""}


def test_tabs_quotes_and_line_breaks_survive_pandas(tmp_path):
    pandas = pytest.importorskip("pandas")
    asked = 'a "quoted"\tword,\r\nthen\nmore é 猫'
    export(Given(given=[plain(0, asked), plain(1)]), tmp_path / "t.tsv")
    table = pandas.read_csv(tmp_path / "t.tsv", sep="\t")
    assert list(table["question"]) == [asked, "what is it ?"]


def test_several_answers_and_several_pictures_are_lists(tmp_path):
    two = plain(0, answers=("cat", "it's a cat"), images=(picture(0), picture(1, (8, 9))))
    export(Given(given=[two, plain(1)]), tmp_path / "l.tsv")
    first, second = read(tmp_path / "l.tsv")
    assert ast.literal_eval(first["answer"]) == ["cat", "it's a cat"]
    assert [decoded(text).size for text in ast.literal_eval(first["image"])] == [(40, 32), (8, 9)]
    assert ast.literal_eval(first["image_path"]) == ["1_0.png", "1_1.png"]
    assert decoded(second["image"]).size == (40, 32) and ast.literal_eval(second["image_path"]) == ["2_0.png"]


@pytest.mark.parametrize(
    ("sample", "told"),
    [
        (Sample("1", error="q.jsonl:3: question is missing"), "q.jsonl:3"),
        (plain(images=()), "no picture"),
        (plain(question="in <image> , what ?"), "<image>"),
    ],
)
def test_what_cannot_be_exported_is_named_and_nothing_is_written(tmp_path, sample, told):
    with pytest.raises(DataError, match=told):
        export(Given(given=[plain(), sample]), tmp_path / "x.tsv")
    assert not list(tmp_path.iterdir())


def test_no_questions_are_an_error(tmp_path):
    with pytest.raises(DataError, match="no questions"):
        export(Given(), tmp_path / "x.tsv")


@pytest.fixture
def questions(tmp_path):
    picture(0).save(tmp_path / "0.png")
    row = {"id": "a", "image": "0.png", "question": "what ?", "answer": ["red", "dark red"], "type": "color"}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    return tmp_path / "q.jsonl"


def call(*arguments):
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


def test_the_command_exports_own_questions(questions):
    file = questions.parent / "mine_openended.tsv"
    done = call("--data", questions, "--output", file)
    assert done.exit_code == 0 and "1 questions" in done.output
    (row,) = read(file)
    assert (row["id"], row["category"], ast.literal_eval(row["answer"])) == ("a", "color", ["red", "dark red"])


def test_a_broken_picture_leaves_the_old_file(questions):
    file = questions.parent / "mine.tsv"
    file.write_text("old")
    (questions.parent / "0.png").write_bytes(b"<html>")
    done = call("--data", questions, "--output", file)
    assert done.exit_code == 1 and "0.png" in done.stderr and file.read_text() == "old"
    assert sorted(p.name for p in questions.parent.iterdir()) == ["0.png", "mine.tsv", "q.jsonl"]


@pytest.mark.parametrize("arguments", [(), ("--benchmarks", "scenes"), ("--benchmarks", "scenes,easy_vqa")])
def test_wrong_arguments_are_told(tmp_path, arguments):
    name = "x.csv" if arguments == ("--benchmarks", "scenes") else "x.tsv"
    done = call(*arguments, "--output", tmp_path / name)
    assert done.exit_code == 1 and "error:" in done.stderr and not list(tmp_path.iterdir())
