"""What stands in a run folder is believed only as it was written: changed by anything, it is refused in words."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest

from tests.eval.results.lines import answer, closed, error
from vtc.errors import DataError, RunRefused
from vtc.eval.results.journal import Journal
from vtc.eval.results.json_lines import encode, read
from vtc.eval.results.settings import run_settings, same_settings
from vtc.eval.results.summary import summarise

CELLS = ("unpatched", "random@4", "fastv@4")
CONFIG = {
    **{"schema": 3, "model": "here", "weights": "abc", "cells": list(CELLS), "batch_size": 2, "window": 16},
    "benchmark": {"name": "jsonl", "split": "test", "limit": None, "data": "f00"},
    "versions": {"torch": "2", "transformers": "5"},
}
LINES = [
    line
    for batch in range(3)
    for cell in CELLS[:2]
    for line in (answer(cell, 2 * batch, batch, score=batch / 2), error(cell, 2 * batch + 1, batch))
]
LINES.insert(4, closed("fastv@4", 0))
LINES[0] |= {"confidence": float("nan"), "expected": ["é", "\ud800", 'a "check"'], "answer": "😀\n|"}

# Ways to change a parsed line; ``key`` is one of its keys.
CHANGES: dict[str, Callable[[dict, str, random.Random], Any]] = {
    "drop a key": lambda line, key, _: {k: v for k, v in line.items() if k != key},
    "rename a key": lambda line, key, _: {k + "x" if k == key else k: v for k, v in line.items()},
    "rename to another key": lambda line, key, rng: {rng.choice(list(line)) if k == key else k: line[k] for k in line},
    "null": lambda line, key, _: line | {key: None},
    "a list": lambda line, key, _: line | {key: [line[key]]},
    "an object": lambda line, key, _: line | {key: {"a": line[key]}},
    "deep nesting": lambda line, key, rng: line | {key: nested(rng.choice((20, 400, 900)))},
    "a huge number": lambda line, key, _: line | {key: 10**12},
    "a number no float holds": lambda line, key, _: line | {key: 10**400},
    "below zero": lambda line, key, _: line | {key: -1},
    "a fraction": lambda line, key, _: line | {key: 0.123},
    "true": lambda line, key, _: line | {key: True},
    "NaN": lambda line, key, _: line | {key: float("nan")},
    "infinity": lambda line, key, _: line | {key: float("inf")},
    "a text": lambda line, key, _: line | {key: "red"},
    "another key": lambda line, key, _: line | {"closed": "no", "error": "no"},
    "no object": lambda line, key, rng: rng.choice((None, [], [line], 3, "line", {}, True)),
}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def bytes_changed(raw: bytes, rng: random.Random) -> bytes:
    """One byte changed, taken out or put in; or a part of the line lost or doubled."""
    at, other = rng.randrange(len(raw)), bytes([rng.randrange(256)])
    to = rng.randrange(at, len(raw) + 1)
    return rng.choice(
        (
            raw[:at] + other + raw[at + 1 :],
            raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :],
            raw[:at] + raw[at + 1 :],
            raw[:at] + other + raw[at:],
            raw[:at] + raw[to:],
            raw[:at] + raw[at:to] + raw[at:],
        )
    )


def changed(raw: bytes, rng: random.Random) -> bytes:
    """A line (with its line break) as something else left it."""
    if rng.random() < 0.4:
        return bytes_changed(raw, rng)
    line = json.loads(raw)
    made = rng.choice(list(CHANGES.values()))(line, rng.choice(list(line)), rng)
    return (json.dumps(made, ensure_ascii=rng.random() < 0.5) + "\n").encode("utf-8", "surrogatepass")


@pytest.fixture
def folder(tmp_path):
    with Journal(tmp_path, CONFIG) as journal:
        journal.append(LINES)
    return tmp_path


def figures(lines: list[dict[str, Any]]) -> str:
    return json.dumps(summarise(lines, list(CELLS), {}), sort_keys=True)


def test_what_was_written_is_read(folder):
    assert list(map(repr, read(folder / "results.jsonl"))) == list(map(repr, LINES))
    for line in (folder / "results.jsonl").read_text("utf-8").splitlines():  # it is UTF-8, whatever a text holds
        assert list(json.loads(line))[-1] == "check"


@pytest.mark.parametrize("seed", range(5))
def test_no_change_of_a_line_changes_the_figures_in_silence(seed, folder):
    """Refused, or of no effect; a last line that was torn is answered again."""
    path, rng = folder / "results.jsonl", random.Random(seed)
    whole, refused = path.read_bytes().splitlines(keepends=True), 0
    right, known = figures(LINES), list(map(repr, LINES))
    for _ in range(100):
        lines = list(whole)
        at = rng.randrange(len(lines))
        lines[at] = changed(lines[at], rng)
        path.write_bytes(b"".join(lines))
        try:
            with Journal(folder, CONFIG) as journal:
                left = list(read(path))
                figures(left)
        except RunRefused as told:
            assert str(path) in str(told) and "--overwrite" in str(told) and len(str(told)) < 1000
            refused += 1
            continue
        lost = [line for line in LINES if repr(line) not in map(repr, left)]
        assert set(map(repr, left)) <= set(known), "nothing that was not written is read"
        assert lost or figures(left) == right
        assert all("closed" in line or journal.missing(line["cell"], line["batch"], [line["row"]]) for line in lost)
        assert len(lost) <= 2
    assert refused > 60


@pytest.mark.parametrize("seed", range(3))
def test_no_change_of_the_settings_is_believed(seed, folder):
    """By a run that goes on, nor by a comparison: refused, or of no effect."""
    path, rng = folder / "config.json", random.Random(seed)
    whole, right, refused = path.read_bytes(), run_settings(folder), 0
    for _ in range(100):
        path.write_bytes(changed(whole, rng))
        try:
            assert run_settings(folder) == right
        except DataError as told:
            assert str(folder) in str(told) and "config.json" in str(told)
            refused += 1
        try:
            same_settings(folder, CONFIG)
        except RunRefused as told:
            assert str(folder) in str(told) and "--overwrite" in str(told)
    assert refused > 60


FIELDS = [  # of a line without a checksum, as runs wrote them before: what is said of it
    ({"row": 10**12}, "row 1000000000000 in a file that holds fewer"),
    ({"row": -1}, "row is -1, not count"),
    ({"row": True}, "row is True"),
    ({"row": 1.0}, "row is 1.0"),
    ({"batch": None}, "batch is None"),
    ({"cell": 3}, "cell is 3"),
    ({"id": ["a"]}, "id is"),
    ({"score": "1"}, "score is '1'"),
    ({"score": 2}, "score is 2, not share"),
    ({"score": -0.5}, "score is -0.5"),
    ({"score": float("nan")}, "score is nan"),
    ({"score": 10**400}, "score is"),
    ({"tokens": float("inf")}, "tokens is inf"),
    ({"confidence": 1.5}, "confidence is 1.5, not share or nan"),
    ({"answer": None}, "answer is None"),
    ({"expected": "red"}, "expected is 'red'"),
    ({"expected": [1]}, "expected is"),
    ({"type": {}}, "type is"),
    ({"closed": "no"}, "is no field"),
    ({"error": "no"}, "is no field"),
    ({"more": 1}, "'more' is no field"),
    ({"check": "00000000"}, "it was changed since it was written"),
    ({"check": "0"}, "'check' is no field"),
]


@pytest.mark.parametrize(("change", "words"), FIELDS, ids=str)
def test_each_field_is_checked(change, words, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (answer("a", 0), answer("a", 1) | change)))
    with pytest.raises(RunRefused, match="results.jsonl:2 is damaged") as told:
        list(read(path))
    assert words in str(told.value)


@pytest.mark.parametrize("key", ["cell", "batch", "row", "id", "answer", "expected", "score", "tokens"])
def test_each_field_is_needed(key, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps({k: v for k, v in answer("a", 0).items() if k != key}) + "\n")
    with pytest.raises(RunRefused, match=f"{key} is missing"):
        list(read(path))


def test_a_setting_that_stands_twice_is_refused(folder):
    path = folder / "config.json"
    path.write_text(path.read_text().replace("{", '{"batch_size": 2, "batch_size": 2, ', 1))
    with pytest.raises(RunRefused, match="'batch_size' occurs twice.*--overwrite"):
        Journal(folder, CONFIG)


def test_a_run_from_before_checksums_is_read(tmp_path):
    lines = [answer("a", n, n // 2) for n in range(4)]
    path = tmp_path / "results.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert list(read(path)) == lines
    with open(path, "ab") as stream:
        stream.write(encode(answer("a", 4)))
    with pytest.raises(RunRefused, match=r"jsonl:5 .*some lines have a checksum, and some have none"):
        list(read(path))


def test_a_row_is_one_question(folder):
    with Journal(folder, CONFIG) as journal:
        journal.check_id(0, "0")
        with pytest.raises(RunRefused, match="row 0 is question 'other' here and another there"):
            journal.check_id(0, "other")
        journal.check_count(6)
        with pytest.raises(RunRefused, match="row 5 is beyond the 5 rows there are"):
            journal.check_count(5)
    with open(folder / "results.jsonl", "ab") as stream:
        stream.write(encode(answer("unpatched", 7, 3)) + encode(answer("random@4", 7, 3, id="other")))
    with pytest.raises(RunRefused, match="row 7 is question 'other'"):
        Journal(folder, CONFIG)


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "3", '{"cells": null}', '{"cells": "a"}', '{"benchmark": []}', "[" * 100_000, '{"a": ']
)
def test_settings_that_are_none(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(RunRefused, match=r"(config.json is damaged|other settings) .*--overwrite"):
        same_settings(tmp_path, CONFIG)


@pytest.mark.parametrize("happens", ["deleted", "moved", "replaced", "emptied", "appended"])
@pytest.mark.parametrize("then", ["append", "finish"])
def test_a_file_that_another_hand_touched_is_noticed(happens, then, tmp_path):
    folder = tmp_path / "run"
    with Journal(folder, CONFIG) as journal:
        journal.append(LINES[:2])
        path = journal.path
        if happens == "deleted":
            path.unlink()
        elif happens == "moved":
            folder.rename(tmp_path / "elsewhere")
        elif happens == "replaced":
            (tmp_path / "copy").write_bytes(path.read_bytes())
            (tmp_path / "copy").replace(path)
        else:
            path.write_bytes(b"" if happens == "emptied" else path.read_bytes() + encode(LINES[2]))
        with pytest.raises(RunRefused, match="results.jsonl was moved, deleted or changed while this run was writing"):
            journal.append(LINES[2:4]) if then == "append" else journal.finish()
    assert folder.exists() == (happens != "moved"), "nothing is put where the folder was"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (error("a", 1, error=[]), "error is"),
        (closed("a", closed=1), "closed is 1"),
        (closed("a", least="5"), "least is '5', not amount or none"),
        (closed("a", batch=-1), "batch is -1"),
    ],
    ids=str,
)
def test_each_field_of_the_other_lines_is_checked(line, words, tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(RunRefused, match=rf"results.jsonl:1 is damaged \({words}"):
        list(read(path))
