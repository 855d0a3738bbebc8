"""The results file: one writer, torn lines mended, other settings refused."""

from __future__ import annotations

import json

import pytest

from tests.eval.results.lines import answer, closed
from vtc.errors import RunRefused
from vtc.eval.results.journal import Journal
from vtc.eval.results.json_lines import read


def line(cell, identity, **more):
    return answer(cell, int(identity), int(identity) // 2, **more)


def rows(journal):
    return {cell: [n for n in range(99) if n in done] for cell, done in journal.done.items() if done}


CONFIG = {"weights": "abc", "model": "here", "cells": ["a", "b"]}


def test_lines_are_kept_and_known_again(tmp_path):
    with Journal(tmp_path, CONFIG) as journal:
        journal.append([line("a", "1"), line("a", "2"), line("b", "1")])
        journal.append([line("a", "2", answer="again"), line("a", "3")])  # answered before: skipped
        journal.append([closed("b", 1)])
    with Journal(tmp_path, CONFIG) as journal:
        assert rows(journal) == {"a": [1, 2, 3], "b": [1]}
        assert journal.closed == {"b": 1}
        assert journal.missing("a", 2, [3, 4]) and not journal.missing("a", 1, [2, 3])
        assert journal.missing("b", 0, [0, 1]) and not journal.missing("b", 1, [2, 3])
    assert len(list(read(tmp_path / "results.jsonl"))) == 5


@pytest.mark.parametrize("torn", ["", '{"ce', '{"cell": "a", "id": "9"}', "x" * 200_000])
def test_a_torn_last_line_is_cut_off(tmp_path, torn):
    with Journal(tmp_path, CONFIG) as journal:
        journal.append([line("a", "1")])
    whole = (tmp_path / "results.jsonl").read_bytes()
    (tmp_path / "results.jsonl").write_bytes(whole + torn.encode())
    with Journal(tmp_path, CONFIG) as journal:
        assert rows(journal) == {"a": [1]}
        assert (tmp_path / "results.jsonl").read_bytes() == whole


def test_a_file_that_is_all_torn_becomes_empty(tmp_path):
    with Journal(tmp_path, CONFIG):
        pass
    (tmp_path / "results.jsonl").write_text('{"cell"')
    with Journal(tmp_path, CONFIG) as journal:
        assert journal.empty


BAD = [
    *("not json", '{"cell": "a"}', "[1]", '{"cell": 3, "batch": 0, "row": 0, "id": "1"}'),
    '{"cell": "unknown", "batch": 0, "row": 0, "id": "1"}',
]


@pytest.mark.parametrize("bad", BAD)
def test_damage_in_the_middle_is_named(tmp_path, bad):
    with Journal(tmp_path, CONFIG) as journal:
        journal.append([line("a", "1")])
    with open(tmp_path / "results.jsonl", "a") as stream:
        stream.write(bad + "\n" + json.dumps(line("a", "2")) + "\n")
    with pytest.raises(RunRefused, match=r"results.jsonl.*--overwrite"):
        Journal(tmp_path, CONFIG)
    Journal(tmp_path, CONFIG, overwrite=True).__exit__()


def test_a_doubled_answer_is_refused(tmp_path):
    with Journal(tmp_path, CONFIG) as journal:
        journal.append([line("a", "1")])
    text = (tmp_path / "results.jsonl").read_text()
    (tmp_path / "results.jsonl").write_text(text * 2)
    with pytest.raises(RunRefused, match="answered '1' twice"):
        Journal(tmp_path, CONFIG)


def test_two_writers_are_refused(tmp_path):
    with Journal(tmp_path, CONFIG):
        with pytest.raises(RunRefused, match="another process"):
            Journal(tmp_path, CONFIG)
        with pytest.raises(RunRefused, match="another process"):
            Journal(tmp_path, CONFIG, overwrite=True)
    Journal(tmp_path, CONFIG).__exit__()


def test_other_settings_are_refused_with_the_remedy(tmp_path):
    with Journal(tmp_path, CONFIG):
        pass
    with pytest.raises(RunRefused, match=r"weights: 'abc' there, 'xyz' asked.*--output.*--overwrite"):
        Journal(tmp_path, {**CONFIG, "weights": "xyz"})
    with pytest.raises(RunRefused, match="seed: None there, 3 asked"):
        Journal(tmp_path, {**CONFIG, "seed": 3})
    Journal(tmp_path, {**CONFIG, "model": "the same by another path"}).__exit__()


def test_overwrite_removes_only_what_a_run_writes(tmp_path):
    (tmp_path / "overlays").mkdir()
    mine, overlay = tmp_path / "notes.txt", tmp_path / "overlays" / "a.png"
    mine.write_text("mine")
    overlay.write_text("old")
    with Journal(tmp_path, CONFIG) as journal:
        journal.append([line("a", "1")])
    with Journal(tmp_path, {**CONFIG, "weights": "xyz"}, overwrite=True) as journal:
        assert journal.empty and mine.exists() and not overlay.exists()


def test_results_without_their_settings_are_refused(tmp_path):
    (tmp_path / "results.jsonl").write_text("{}\n")
    with pytest.raises(RunRefused, match=r"no config.json"):
        Journal(tmp_path, CONFIG)


def test_parts_of_ranks_are_put_together_in_order_once(tmp_path):
    """What ranks leave when they are killed, at any point of putting it together."""
    whole = [line(cell, str(n)) for batch in range(3) for cell in "ab" for n in (2 * batch, 2 * batch + 1)]
    whole = [x for x in whole if not (x["cell"] == "b" and x["batch"] > 0)]
    whole.insert(6, closed("b", 1))
    later = [line("b", "4"), closed("b", 2, closed="too few tokens, too", least=40)]  # another rank's
    with Journal(tmp_path, CONFIG) as journal:
        journal.append(whole[:2])
    for rank, lines in ((0, whole[2:8]), (1, whole[8:] + later), (7, whole[:3])):
        (tmp_path / f"results.rank{rank}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines) + '{"ce')
    with Journal(tmp_path, CONFIG) as journal:
        assert list(read(journal.path)) == whole and journal.closed == {"b": 1}
        assert [p.name for p in tmp_path.glob("results.rank*")] == ["results.rank0.jsonl"]
        journal.finish()
    assert list(read(tmp_path / "results.jsonl")) == whole and not list(tmp_path.glob("results.rank*"))


def test_gaps_that_a_rank_left_are_filled_in_order(tmp_path):
    with Journal(tmp_path, CONFIG):
        pass
    (tmp_path / "results.rank1.jsonl").write_text("".join(json.dumps(line("a", n)) + "\n" for n in "23"))
    with Journal(tmp_path, CONFIG) as journal:
        journal.append([line("a", "0")])  # stopped here
    with Journal(tmp_path, CONFIG) as journal:
        journal.append([line("a", "0"), line("a", "1"), line("a", "4")])
        journal.finish()
    assert [x["id"] for x in read(tmp_path / "results.jsonl")] == list("01234")


def test_one_cell_is_read_alone(tmp_path):
    file = tmp_path / "results.jsonl"
    lines = [answer(cell, n, answer="b@0.5") for n in range(3) for cell in ("a@0.5", "b@0.5", "ä+b@0.5")]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")
    for cell in ("a@0.5", "b@0.5", "ä+b@0.5"):
        assert [x["id"] for x in read(file, cell) if x["cell"] == cell] == ["0", "1", "2"]
    assert {x["cell"] for x in read(file, "a@0.5")} == {"a@0.5"}
