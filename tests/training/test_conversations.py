"""Conversations from files, data sets and the testbed; bad rows name their place."""

from __future__ import annotations

import json

import pytest

from tests.eval.tiny import picture
from vtc.errors import DataError
from vtc.training.conversations import Answered, JSONLines, Scenes, Turn, conversation, source

GOOD = {
    "id": "a",
    "image": "0.png",
    "messages": [{"role": "user", "content": "what ?"}, {"role": "assistant", "content": "red"}],
}


@pytest.fixture
def write(tmp_path):
    def write(*rows):
        picture(0).save(tmp_path / "0.png")
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (tmp_path / "c.jsonl").write_text("\n".join(lines))
        return tmp_path / "c.jsonl"

    return write


def test_forms_of_one_conversation(write):
    parts = [{"type": "image"}, {"type": "text", "text": "what ?"}]
    rows = [
        GOOD,
        {**GOOD, "id": 2, "messages": [{"role": "user", "content": parts}, GOOD["messages"][1]]},
        {
            "id": "llava",
            "image": "0.png",
            "conversations": [{"from": "human", "value": "<image> what ?"}, {"from": "gpt", "value": " red\n"}],
        },
        {"id": "s", "images": ["0.png"], "messages": [{"role": "system", "content": "Be brief."}, *GOOD["messages"]]},
        {"id": "text", "messages": GOOD["messages"]},
    ]
    data = JSONLines(write(*rows))
    assert [data[n].id for n in range(len(data))] == ["a", "2", "llava", "s", "text"]
    assert [data[n].turns for n in (0, 1, 2)] == [
        (Turn("what ?", "red"),),
        (Turn("<image> what ?", "red"),),
        (Turn("<image> what ?", "red"),),
    ]
    assert data[0].images[0].size == (40, 32) and data[4].images == ()
    assert data[3].system == "Be brief."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": ""}, "give every conversation"),
        ({"id": True}, "give every conversation"),
        ({"messages": []}, "no messages"),
        ({"messages": ["hello"]}, "a message is a str"),
        ({"messages": GOOD["messages"][:1]}, "an answer last"),
        ({"messages": GOOD["messages"][::-1]}, "user and assistant in turn"),
        ({"messages": [{"role": "tool", "content": "x"}, GOOD["messages"][1]]}, "role is 'tool'"),
        ({"messages": [{"role": "user", "content": 3}, GOOD["messages"][1]]}, "content is 3"),
        ({"messages": [GOOD["messages"][0], {"role": "assistant", "content": " "}]}, "an answer is empty"),
        ({"messages": [GOOD["messages"][0], {"role": "assistant", "content": "<image>"}]}, "an answer holds"),
        ({"messages": [{"role": "user", "content": "<image><image>"}, GOOD["messages"][1]]}, "2 <image> and 1"),
        ({"image": "../0.png"}, "leaves the data folder"),
        ({"image": "none.png"}, "does not exist"),
        ({"image": "http://x/0.png"}, "is a URL"),
        ({"images": ["0.png"] * 65}, "above 64"),
    ],
)
def test_bad_rows_name_their_line(write, changes, message):
    with pytest.raises(DataError, match=rf"c\.jsonl:2.*{message}"):
        JSONLines(write(GOOD, {"id": "b", **{k: v for k, v in GOOD.items() if k != "id"}, **changes}))


@pytest.mark.parametrize(("rows", "message"), [(["{"], "not JSON"), (["[]"], "a list"), ([GOOD, GOOD], "used before")])
def test_bad_files(write, rows, message):
    with pytest.raises(DataError, match=message):
        JSONLines(write(*rows))


def test_an_empty_or_missing_file(write, tmp_path):
    with pytest.raises(DataError, match="no conversation"):
        JSONLines(write(""))
    with pytest.raises(DataError, match="cannot be read"):
        source(str(tmp_path / "none.jsonl"), 1)


def test_a_broken_picture_names_its_line(write, tmp_path):
    data = JSONLines(write(GOOD))
    (tmp_path / "0.png").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"c\.jsonl:1.*HTML"):
        data[0]


def test_scenes_are_the_same_whenever_they_are_asked():
    data, more = Scenes(18), Scenes(1000)
    assert len(data) == 18
    assert [data[n].turns for n in (0, 5, 17)] == [more[n].turns for n in (0, 5, 17)]
    assert len({data[n].id.rpartition("-")[2] for n in range(18)}) >= 7, "the types come in turn"
    with pytest.raises(DataError, match="ask for fewer"):
        Scenes(10**8)


def test_rows_of_a_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"images": [picture(n)], "messages": GOOD["messages"]} for n in range(3)]
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
        }
    )
    (tmp_path / "rows").mkdir()
    datasets.Dataset.from_list(rows, features=features).to_parquet(tmp_path / "rows" / "train.parquet")
    data = source(str(tmp_path / "rows"), 1)
    assert len(data) == 3 and data[2].id == "2" and data[2].images[0].size == (40, 32)
    with pytest.raises(DataError, match="cannot be read"):
        source(str(tmp_path / "nowhere"), 1)


def test_answers_of_a_teacher_take_the_place_of_those_in_the_file(write):
    data = Answered(JSONLines(write(GOOD)), {"a": ["blue"]}, "big")
    assert data[0].turns == (Turn("what ?", "blue"),) and "big" in data.name and len(data) == 1


def test_a_row_is_checked_without_a_file():
    with pytest.raises(DataError, match="here: the turns"):
        conversation({"id": 1, "messages": GOOD["messages"] * 2 + GOOD["messages"][:1]}, "here")
