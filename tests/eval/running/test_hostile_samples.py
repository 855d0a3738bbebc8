"""A run is never lost to one sample: it becomes a line that says what is wrong, and all else is as it would be."""

from __future__ import annotations

import json

import pytest

import vtc
from tests.eval.hostile import GOOD, PICTURES, ROWS
from tests.eval.tiny import picture
from vtc.errors import DataError, RunRefused
from vtc.eval.asking.generate import Answerer
from vtc.eval.benchmarks.jsonl import JSONL
from vtc.eval.costs import measure, timing
from vtc.eval.report import overlays, plots
from vtc.eval.results.json_lines import read
from vtc.eval.running.run import evaluate
from vtc.eval.studies.compare import compare

QUICK = {"repeats": 0, "overlays": 1, "batch_size": 4, "progress": False, "max_new_tokens": 4}
CELLS = ("unpatched", "random@0.5")


@pytest.fixture(autouse=True)
def no_plot(monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)


@pytest.fixture
def go(vlm, tmp_path):
    def run(file, output="out", model=vlm, methods=("random",), **options):
        return evaluate(*model, JSONL(data=file), methods, [0.5], tmp_path / output, **(QUICK | options))

    return run


def good(count):
    return [GOOD | {"id": f"good{n}"} for n in range(count)]


def lines(folder):
    return list(read(folder / "results.jsonl"))


def one_failed(results, row, words, cells=CELLS):
    """This row of ``cells`` failed with these words, all others were answered, and there is a whole table."""
    folder = results.folder
    for line in lines(folder):
        assert ("error" in line) == (line["row"] == row and line["cell"] in cells), line
        if "error" in line:
            assert line["error"].startswith(f"q.jsonl:{row + 1}: ") and words in line["error"], line["error"][:300]
    for name in CELLS:
        assert results.summary["cells"][name]["errors"] == (name in cells)
        assert results.summary["cells"][name]["kv_bytes"] > 0
    assert (folder / "table.md").exists() and (folder / "report.html").exists()
    assert len(list((folder / "overlays").iterdir())) == 1
    json.loads((folder / "summary.json").read_text("utf-8"))


def each(names, every=6):
    """One run for each, as parameters; most are slow, as ``test_all_of_them_in_one_file`` has them all."""
    return [n if i % every == 0 else pytest.param(n, marks=pytest.mark.slow) for i, n in enumerate(names)]


@pytest.mark.parametrize("name", each(ROWS))
def test_a_row_is_an_error_line(name, go, write_rows, monkeypatch):
    row, words = ROWS[name]
    first = row if isinstance(row, bytes) else GOOD | {"id": "hostile"} | row
    results = go(file := write_rows([first, *good(3)]))
    one_failed(results, 0, words)
    monkeypatch.setattr(Answerer, "replies", lambda *_: pytest.fail("asked again"))
    assert go(file, overlays=0).summary == results.summary, "the same command goes on"


@pytest.mark.parametrize("name", each(PICTURES))
def test_a_picture_is_an_error_line(name, go, write_rows):
    make, words = PICTURES[name]
    file = write_rows([GOOD | {"id": "hostile", "image": "hostile.img"}, *good(3)])
    make(file.parent / "hostile.img")
    one_failed(go(file), 0, words)


def test_all_of_them_in_one_file(go, write_rows):
    """Each is its own error line; the good rows between them are answered, and the same command goes on."""
    rows, told = [], {}
    for n, (row, words) in enumerate(ROWS.values()):
        told[len(rows)] = words
        rows.append(row if isinstance(row, bytes) else GOOD | {"id": f"row{n}"} | row)
        rows += [GOOD | {"id": f"between{n}"}] if n % 3 == 0 else []
    for n, (_, words) in enumerate(PICTURES.values()):
        told[len(rows)] = words
        rows.append(GOOD | {"id": f"picture{n}", "image": f"hostile{n}.img"})
    file = write_rows(rows)
    for n, (make, _) in enumerate(PICTURES.values()):
        make(file.parent / f"hostile{n}.img")
    results = go(file)
    for line in lines(results.folder):
        assert ("error" in line) == (line["row"] in told), line
        assert told.get(line["row"], "") in line.get("error", ""), line
    assert results.summary["cells"]["unpatched"]["errors"] == len(told)
    assert (results.folder / "table.md").exists() and go(file, overlays=0).summary == results.summary


def refusing(vlm, monkeypatch, side):
    """A processor that raises for pictures so wide, as processors do, whatever else is in the batch."""
    real = type(vlm[1]).__call__

    def call(self, images=None, **options):
        if any(each.width == side for pictures in images or [] for each in pictures):
            raise TypeError("unsupported image")
        return real(self, images=images, **options)

    monkeypatch.setattr(type(vlm[1]), "__call__", call)


@pytest.mark.parametrize("places", [(0,), (0, 1, 2), (0, 1, 2, 3)], ids=str)
def test_pictures_that_the_processor_refuses(places, go, vlm, write_rows, monkeypatch):
    rows = good(4)
    for place in places:
        rows[place] |= {"image": "odd.png"}
    file = write_rows(rows)
    picture(9, (77, 40)).save(file.parent / "odd.png")
    refusing(vlm, monkeypatch, 77)
    if len(places) == 1:
        return one_failed(go(file), 0, "TypeError: unsupported image")
    results = go(file)
    for name in CELLS:
        assert results.summary["cells"][name]["errors"] == len(places)
    assert (results.folder / "table.md").exists() and bool(results.measured) == (len(places) < 4)
    assert go(file).summary == results.summary


def test_a_batch_that_fails_and_passes_in_parts_is_told(go, write_rows, monkeypatch):
    """Its answers count, and the fault is not hidden by them."""
    real = Answerer.replies

    def replies(self, inputs):
        if len(inputs["input_ids"]) == 4:
            raise RuntimeError("sizes must match")
        return real(self, inputs)

    monkeypatch.setattr(Answerer, "replies", replies)
    with pytest.warns(UserWarning, match=r"a batch of 4 failed \(RuntimeError: sizes must match\).*in two parts"):
        results = go(write_rows(good(4)))
    assert results.summary["cells"]["random@0.5"]["errors"] == 0


def test_a_sample_that_has_its_line_is_not_told_twice(go, vlm, write_rows, monkeypatch, recwarn):
    rows = good(4)
    rows[1] |= {"image": "odd.png"}
    file = write_rows(rows)
    picture(9, (77, 40)).save(file.parent / "odd.png")
    refusing(vlm, monkeypatch, 77)
    go(file)
    assert not [warned for warned in recwarn if "in two parts" in str(warned.message)]


def test_a_sample_that_fails_under_one_method_is_no_probe(go, vlm, write_rows, monkeypatch):
    real = Answerer.replies

    def replies(self, inputs):
        if vtc.patch_of(self.model) is not None and (inputs["input_ids"] == ONLY).any():
            raise RuntimeError("this kernel cannot")
        return real(self, inputs)

    ONLY = vlm[1].tokenizer.convert_tokens_to_ids("blue")
    monkeypatch.setattr(Answerer, "replies", replies)
    rows = good(4)
    rows[0]["question"] = "is it blue ?"
    asked, cost = [], measure.cost
    monkeypatch.setattr(measure, "cost", lambda a, cell, probes: asked.extend(probes) or cost(a, cell, probes))
    one_failed(go(write_rows(rows)), 0, "RuntimeError: this kernel cannot", cells=("random@0.5",))
    assert asked and "good0" not in {probe.sample.id for probe in asked}


SLOW = pytest.mark.slow
FAILING = [
    RuntimeError("out of memory"),
    *(pytest.param(e, marks=SLOW) for e in (DataError("no padding"), MemoryError())),
]


@pytest.mark.parametrize("error", FAILING, ids=repr)
@pytest.mark.parametrize("place", ["cost", "timing", "overlay"])
def test_what_cannot_be_measured_or_drawn_is_left_out_and_said(place, error, go, write_rows, monkeypatch):
    def fails(*args, **options):
        raise error

    module, name = {"cost": (measure, "cost"), "timing": (timing, "once"), "overlay": (overlays, "draw")}[place]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, fails)
        if place == "overlay":
            with pytest.warns(UserWarning, match=r"q.jsonl:1: no overlay \("):
                results = go(write_rows(good(2)), repeats=1)
        else:
            results = go(write_rows(good(2)), repeats=1)
    said = (results.folder / "table.md").read_text()
    assert results.summary["cells"]["random@0.5"]["questions"] == 2
    assert ("imes, memory and energy could not be measured" in said) == (place != "overlay")
    if place == "cost":
        assert "cost" not in results.measured["unpatched"] and "Costs, times" in said
    if place == "timing":
        assert "cost" in results.measured["unpatched"] and "timing" not in results.measured["unpatched"]
    again = go(results.folder.parent / "q.jsonl", repeats=1)
    assert "timing" in again.measured["unpatched"], "the same command measures again"


def test_the_librarys_own_refusals_still_end_a_run(go, write_rows, monkeypatch):
    def refuse(*args):
        raise vtc.errors.NotReduced("no stage ran")

    monkeypatch.setattr(measure, "cost", refuse)
    with pytest.raises(vtc.errors.NotReduced):
        go(write_rows(good(2)))


BROKEN = b"{broken"
NAMED = [  # ids that are what a broken line is called, before and after that line
    [{"id": "line:2"}, BROKEN, {"id": "c"}],
    [BROKEN, {"id": "line:1"}, {"id": "c"}],
    [{"id": "line:3"}, {"id": "line:1"}, BROKEN],
    [{"id": "line:1"}, {"id": "line:1"}, BROKEN, {"id": "line:2"}],
    [{"id": "2"}, BROKEN, {"id": 2}, {"id": "line:3"}],
]


@pytest.mark.parametrize("rows", NAMED, ids=lambda rows: " ".join(map(str, rows)))
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_the_name_of_a_broken_line_may_be_an_id(rows, batch_size, go, write_rows):
    seen, bad = set(), set()
    for n, row in enumerate(rows):
        if row == BROKEN or str(row["id"]) in seen:
            bad.add(n)
        else:
            seen.add(str(row["id"]))
    file = write_rows([row if row == BROKEN else GOOD | row for row in rows])
    first = go(file, batch_size=batch_size)
    got = {(line["cell"], line["row"]): "error" in line for line in lines(first.folder)}
    assert got == {(cell, n): n in bad for cell in CELLS for n in range(len(rows))}
    assert go(file, batch_size=batch_size).summary == first.summary
    drift = compare(first.folder, first.folder)["cells"]
    assert {cell["questions"] for cell in drift.values()} == {len(rows) - len(bad)}


@pytest.mark.parametrize("score", [float("nan"), 3.0, -1.0, float("inf")], ids=str)
def test_a_score_that_is_none_is_an_error_line(score, go, write_rows, monkeypatch):
    monkeypatch.setattr(JSONL, "score", lambda self, answer, sample: score if sample.id == "good0" else 1.0)
    one_failed(go(write_rows(good(3))), 0, "a score is in [0, 1]")


def test_pixels_that_are_no_numbers_are_an_error(go, vlm, write_rows, monkeypatch):
    monkeypatch.setattr(vlm[1].image_processor, "image_std", [0.0, 1.0, 1.0])
    results = go(write_rows(good(3)))
    assert results.summary["cells"]["unpatched"]["errors"] == 3
    assert all("NaN or infinite pixels" in line["error"] for line in lines(results.folder))
    assert (results.folder / "table.md").exists() and results.measured == {}


@pytest.mark.parametrize("happens", ["deleted", "moved"])
def test_a_folder_that_goes_while_it_is_written_ends_the_run_and_not_its_answers(
    happens, go, write_rows, tmp_path, monkeypatch
):
    file, real, calls = write_rows(good(8)), Answerer.replies, []

    def replies(self, inputs):
        calls.append(1)
        if len(calls) == 3:
            (tmp_path / "out").rename(tmp_path / "away") if happens == "moved" else (
                tmp_path / "out" / "results.jsonl"
            ).unlink()
        return real(self, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(Answerer, "replies", replies)
        with pytest.raises(RunRefused, match="results.jsonl was moved, deleted or changed while this run"):
            go(file)
    if happens == "moved":
        assert not (tmp_path / "out").exists()
        (tmp_path / "away").rename(tmp_path / "out")
    results = go(file)
    assert results.summary == go(file, output="whole").summary


def test_answers_that_go_while_costs_are_measured_are_missed(go, write_rows, tmp_path, monkeypatch):
    real = measure.cost

    def cost(*args):
        (tmp_path / "out" / "results.jsonl").unlink(missing_ok=True)
        return real(*args)

    file = write_rows(good(2))
    with monkeypatch.context() as patch:
        patch.setattr(measure, "cost", cost)
        with pytest.raises(RunRefused, match="results.jsonl was moved, deleted or changed"):
            go(file)
    assert not (tmp_path / "out" / "table.md").exists()
    assert go(file).summary["cells"]["random@0.5"]["questions"] == 2
