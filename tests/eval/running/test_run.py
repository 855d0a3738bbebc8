"""The runner end to end on a tiny model: what it writes, what it refuses, what it survives."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch

import vtc
from tests.eval.tiny import picture
from vtc.errors import DataError, RunRefused, VTCError
from vtc.eval.asking.generate import Answerer
from vtc.eval.benchmarks.jsonl import JSONL
from vtc.eval.report import plots
from vtc.eval.results.json_lines import first_errors, read
from vtc.eval.running.run import evaluate

QUICK = {"repeats": 0, "overlays": 0, "batch_size": 5, "progress": False, "max_new_tokens": 4}


@pytest.fixture(autouse=True)
def no_plot(request, monkeypatch):
    """Plots take longer than the runs; one test draws one."""
    if "whole" not in request.node.name:
        monkeypatch.setattr(plots, "available", lambda: False)


@pytest.fixture
def go(vlm, tmp_path):
    """Runs into tmp_path/out; gives the results."""

    def run(file, methods=("random",), budgets=(0.5,), **options):
        folder = options.pop("output", tmp_path / "out")
        return evaluate(*vlm, JSONL(data=file), methods, budgets, folder, **(QUICK | options))

    return run


def lines(folder):
    return list(read(folder / "results.jsonl"))


def test_a_whole_run(go, rows, write_rows):
    results = go(write_rows(rows), ("random", "bipartite+share"), (0.5, 4), repeats=2, overlays=2, timing_batch=2)
    folder, cells = results.folder, results.summary["cells"]
    names = ["unpatched", "random@0.5", "random@4", "bipartite+share@0.5", "bipartite+share@4"]
    assert results.summary["order"] == names
    assert Counter(line["cell"] for line in lines(folder)) == dict.fromkeys(names, 12)
    assert [cells[name]["tokens"] for name in names] == [16, 8, 4, 8, 4]
    assert cells["random@4"]["kv_bytes"] < cells["random@0.5"]["kv_bytes"] < cells["unpatched"]["kv_bytes"]
    assert cells["random@4"]["flops"] < cells["random@0.5"]["flops"] < cells["unpatched"]["flops"]
    assert set(cells["unpatched"]["types"]) == {"color", "place"}
    for name in names:
        scores = [line["score"] for line in lines(folder) if line["cell"] == name]
        assert cells[name]["accuracy"] == sum(scores) / 12 and cells[name]["questions"] == 12
        timing = results.measured[name]["timing"]
        assert timing["prefill_ms"] > 0 and timing["speedup"] > 0 and timing["repeats"] == 2 and timing["batch"] == 2
    on_disk = json.loads((folder / "summary.json").read_text())
    settings = on_disk["settings"]
    assert on_disk["cells"]["random@4"]["tokens"] == 4
    assert settings["attention"] == "sdpa" and settings["dtype"] == "float32" and len(settings["weights"]) == 64
    assert settings["processor"].startswith("LlavaProcessor") and settings["versions"]["torch"]
    page = (folder / "table.md").read_text()
    assert "| unpatched | all |" in page and "Time, memory and energy" in page and "Beyond accuracy" in page
    assert page.count("| random | 4 | 1 |") == page.count("| random | 4 | 2 |") == 1
    assert (folder / "pareto.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list((folder / "overlays").glob("*.png"))) == 2
    assert not list(folder.glob(".tmp-*"))


def test_the_model_is_left_as_it_was(go, vlm, rows, write_rows):
    before = dict(vlm[0].state_dict())
    go(write_rows(rows))
    assert vtc.patch_of(vlm[0]) is None and all(
        before[k] is v or before[k].equal(v) for k, v in vlm[0].state_dict().items()
    )


def test_a_full_budget_answers_as_the_unpatched_model(go, rows, write_rows):
    results = go(write_rows(rows), ("visionzip",), (1.0,))
    by_cell = {}
    for line in lines(results.folder):
        by_cell.setdefault(line["cell"], []).append((line["id"], line["answer"], line["tokens"]))
    assert by_cell["visionzip@1.0"] == by_cell["unpatched"]


def test_a_budget_out_of_reach_closes_its_cell(go, rows, write_rows):
    results = go(write_rows(rows), ("fastv", "random"), (0.5, 0.25))
    cell = results.summary["cells"]["fastv@0.25"]
    assert cell["least"] == 5 and "accuracy" not in cell
    assert "least 5" in (results.folder / "table.md").read_text()
    assert results.summary["cells"]["random@0.25"]["questions"] == 12
    again = go(results.folder.parent / "q.jsonl", ("fastv", "random"), (0.5, 0.25))
    assert again.summary == results.summary


def test_asked_again_nothing_is_computed(go, rows, write_rows, monkeypatch):
    file = write_rows(rows)
    first = go(file)
    before = (first.folder / "results.jsonl").read_bytes()
    monkeypatch.setattr(Answerer, "replies", lambda *_: pytest.fail("asked again"))
    assert go(file).summary == first.summary
    assert (first.folder / "results.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        {"budgets": (0.25,)},
        {"budgets": (0.5, 0.25)},
        {"methods": ("grid",)},
        {"methods": ("random+share",)},
        {"template": "{question} one ?"},
        {"batch_size": 6},
    ],
    ids=str,
)
def test_other_settings_are_not_mixed(go, rows, write_rows, change):
    file = write_rows(rows[:2])
    go(file)
    with pytest.raises(RunRefused, match="other settings"):
        go(file, **change)
    go(file, **change, overwrite=True)


def test_other_weights_data_or_limit_are_not_mixed(go, vlm, rows, write_rows, tmp_path):
    file = write_rows(rows[:2])
    go(file)
    with pytest.raises(RunRefused, match="benchmark"):
        evaluate(*vlm, JSONL(data=file, limit=1), ["random"], [0.5], tmp_path / "out", **QUICK)
    write_rows(rows[1:3])
    with pytest.raises(RunRefused, match="benchmark"):
        go(file)
    write_rows(rows[:2])
    weight = vlm[0].lm_head.weight
    with torch.no_grad():
        weight[3, 3] += 1
        try:
            with pytest.raises(RunRefused, match="weights"):
                go(file)
        finally:
            weight[3, 3] -= 1


def test_the_run_stops_where_the_first_twenty_samples_all_fail(go, rows, write_rows, tmp_path):
    """The data folder is wrong: nothing is recorded, so the right one goes on in the same run folder."""
    many = [row | {"id": f"{n}{row['id']}", "image": f"far/{row['image']}"} for n in range(3) for row in rows]
    file = write_rows(many)
    with pytest.raises(DataError, match=r"first 2\d samples all failed.*q.jsonl:1: .*does not exist"):
        go(file)
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == b""
    (tmp_path / "far").mkdir()
    for n in range(3):
        (tmp_path / f"{n}.png").rename(tmp_path / "far" / f"{n}.png")
    assert go(file).summary["cells"]["random@0.5"]["questions"] == 36


def test_errors_before_the_first_answer_are_kept_and_not_tried_again(go, rows, write_rows, monkeypatch):
    for row in rows[:7]:
        row["image"] = "cut.png"
    file = write_rows(rows)
    cut = file.parent / "cut.png"
    picture(0, (300, 300)).save(cut)  # large pictures come first
    cut.write_bytes(cut.read_bytes()[:-1000])
    first = go(file)
    order = [(line["cell"], line["id"]) for line in lines(first.folder)]
    assert first.summary["cells"]["unpatched"]["errors"] == 7
    assert set(order[:5]) <= {("unpatched", f"q{n}") for n in range(7)}
    picture(0, (300, 300)).save(cut)
    monkeypatch.setattr(Answerer, "replies", lambda *_: pytest.fail("asked again"))
    assert go(file).summary == first.summary


def test_bad_samples_are_counted_never_scored(go, rows, write_rows, tmp_path):
    rows[1]["image"] = "gone.png"
    rows[4]["question"] = "<image> <image> ?"
    rows[6]["id"] = "q0"
    file = write_rows([*rows, b"{"])
    results = go(file)
    for name in ("unpatched", "random@0.5"):
        cell = results.summary["cells"][name]
        mine = [line for line in lines(results.folder) if line["cell"] == name]
        errors = {line["id"]: line["error"] for line in mine if "error" in line}
        assert set(errors) == {"q1", "q4", "line:7", "line:13"} and all("q.jsonl:" in e for e in errors.values())
        assert cell["errors"] == 4 and cell["questions"] == 9
        assert cell["accuracy"] == sum(line.get("score", 0) for line in mine) / 9
        assert not any("score" in line for line in mine if "error" in line)
    assert "8 answers are missing because of errors" in (results.folder / "table.md").read_text()
    good = write_rows([row for n, row in enumerate(rows) if n not in (1, 4, 6)])
    clean = go(good, output=tmp_path / "clean")
    answers = {(x["cell"], x["id"]): x["answer"] for x in lines(clean.folder)}
    assert answers == {(x["cell"], x["id"]): x["answer"] for x in lines(results.folder) if "answer" in x}


def test_out_of_memory_halves_the_batch(go, rows, write_rows, monkeypatch, tmp_path):
    file = write_rows(rows)
    calm = go(file, output=tmp_path / "calm")
    real, sizes = Answerer.replies, []

    def replies(self, inputs):
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, inputs)

    monkeypatch.setattr(Answerer, "replies", replies)
    results = go(file)
    assert max(sizes) == 5 and results.summary == calm.summary


def test_a_sample_that_never_fits_is_an_error(go, rows, write_rows, monkeypatch):
    real = Answerer.replies

    def replies(self, inputs):
        if inputs["input_ids"].shape[1] > 30:  # 16 vision tokens and the long question
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return real(self, inputs)

    rows[3]["question"] = "what is the color of the red shape left of the blue shape ?"
    file = write_rows(rows)
    monkeypatch.setattr(Answerer, "replies", replies)
    results = go(file)
    cell = results.summary["cells"]["random@0.5"]
    assert cell["errors"] == 1 and cell["questions"] == 11
    (reason,) = first_errors(results.folder / "results.jsonl", 3)
    assert reason.startswith("q.jsonl:4: RuntimeError") and "can't allocate memory" in reason


def test_errors_of_the_library_are_not_taken_for_bad_samples(go, rows, write_rows, monkeypatch):
    def replies(self, inputs):
        raise vtc.errors.NotReduced("no stage ran")

    monkeypatch.setattr(Answerer, "replies", replies)
    with pytest.raises(vtc.errors.NotReduced):
        go(write_rows(rows))


def test_a_patched_model_is_refused(go, vlm, rows, write_rows):
    with vtc.patched(vlm[0], "random", budget=0.5), pytest.raises(VTCError, match="unpatch"):
        go(write_rows(rows))


def test_multi_picture_tokens_are_a_mean_per_picture(go, rows, write_rows):
    rows[0]["image"] = ["0.png", "1.png"]
    results = go(write_rows(rows[:3]))
    assert [(x["cell"], x["tokens"]) for x in lines(results.folder) if x["id"] == "q0"] == [
        ("unpatched", 16.0),
        ("random@0.5", 8.0),
    ]


def test_without_methods_only_the_unpatched_model_is_asked(go, rows, write_rows):
    results = go(write_rows(rows[:3]), (), ())
    assert results.summary["order"] == ["unpatched"]
