"""What is counted is right to the byte; what is timed has its structure and stands beside the unpatched model."""

from __future__ import annotations

import math

import pytest
import torch

import vtc
from tests.eval.tiny import picture
from vtc.eval.asking.generate import Answerer, Asked
from vtc.eval.benchmarks import Benchmark, Sample
from vtc.eval.cells import Cell, plan
from vtc.eval.costs import memory, timing
from vtc.eval.costs.flops import counter
from vtc.eval.costs.interleaved import Turns
from vtc.eval.costs.measure import cost, entered, everything

LAYERS, HEADS, WIDTH, FLOAT = 4, 2, 8, 4  # of the tiny model's cache


@pytest.fixture
def answerer(vlm):
    return Answerer(*vlm, Benchmark.frame, max_new_tokens=3)


@pytest.fixture
def asked(answerer):
    questions = ("what is the color ?", "is the shape left ?")
    return [Asked(Sample(q, q), [picture(n)], answerer.prompt(q, 1)) for n, q in enumerate(questions)]


@pytest.mark.parametrize("cell", [Cell(), Cell("random", 4), Cell("divprune+share", 0.5)], ids=lambda c: c.name)
def test_cache_bytes_are_those_of_the_rows_that_are_kept(answerer, asked, cell):
    rows = answerer.inputs(asked[:1])["input_ids"].shape[1] - 16 + {"": 16, "random": 4}.get(cell.spec, 8)
    figures = cost(answerer, cell, asked[:1])
    assert figures["kv_bytes"] == LAYERS * HEADS * rows * WIDTH * 2 * FLOAT
    assert figures["tokens"] == rows - (answerer.inputs(asked[:1])["input_ids"].shape[1] - 16)


def test_flops_of_the_whole_forward_hold_the_tower_and_fall_with_the_rows(answerer, asked):
    full, few = (cost(answerer, cell, asked[:1]) for cell in (Cell(), Cell("random", 4)))
    assert few["forward_flops"] < full["forward_flops"]
    linear = 2 * 12 * LAYERS * (32 * (32 + 16 + 16 + 32) + 3 * 32 * 64)  # of the 12 rows that left the decoder layers
    assert full["forward_flops"] - few["forward_flops"] >= linear
    assert full["flops"] < full["forward_flops"]


def test_everything_that_is_measured(answerer, asked):
    cells = plan(["random", "grid"], [4, 0.5])
    found = everything(answerer, cells, asked, repeats=2, batch=2, turns=Turns())
    assert list(found) == [cell.name for cell in cells]
    for name, entry in found.items():
        assert set(entry) == {"cost", "timing", "timing_single", "memory", "energy"}
        for key, batch in (("timing", 2), ("timing_single", 1)):
            part = entry[key]
            assert (part["batch"], part["repeats"], part["warm_up"]) == (batch, 2, timing.WARM_UP)
            for figure in ("prefill_ms", "ttft_ms", "decode_tokens_per_s", "speedup", "ttft_speedup", "decode_speedup"):
                assert 0 < part[figure] < math.inf
            assert min(part["iqr_ms"], part["ttft_iqr_ms"], part["decode_iqr"], part["selection_ms"]) >= 0
            if name == "unpatched":
                assert part["speedup"] == part["ttft_speedup"] == part["decode_speedup"] == 1.0
                assert part["speedup_iqr"] == part["ttft_speedup_iqr"] == part["decode_speedup_iqr"] == 0.0
    assert vtc.patch_of(answerer.model) is None
    assert set(everything(answerer, cells, asked, repeats=0, batch=2, turns=Turns())["grid@4"]) == {"cost"}


def test_one_batch_size_is_timed_once(answerer, asked):
    assert "timing_single" not in everything(answerer, [Cell()], asked, repeats=1, batch=1, turns=Turns())["unpatched"]


def test_cells_take_turns_with_the_unpatched_model(answerer, asked, monkeypatch):
    order = []

    def once(answerer, inputs):
        patch = vtc.patch_of(answerer.model)
        order.append(str(patch.budget) if patch else "base")
        return {"prefill_ms": 2.0 if patch else 6.0, "selection_ms": 0.0, "ttft_ms": 3.0, "decode_tokens_per_s": 5.0}

    monkeypatch.setattr(timing, "once", once)
    cells = plan(["random"], [2, 4, 6, 8])
    enter = {cell.name: lambda cell=cell: entered(answerer.model, cell) for cell in cells}
    found = timing.timing(answerer, enter, asked, repeats=2, turns=Turns())
    one = [text.split()[0] for text in order[: len(order) // 3]]
    assert one.count("base") == 2 and one[0] == one[3] == "base"
    assert order == order[: len(one)] * 3  # a turn to warm up, then two
    assert found["random@4"]["speedup"] == 3.0 and found["random@4"]["prefill_ms"] == 2.0


def test_a_generation_is_marked_at_each_token(answerer, asked):
    marks = timing.Marks(torch.device("cpu"))
    new = answerer.generate(answerer.inputs(asked), min_new_tokens=5, max_new_tokens=5, stopping_criteria=[marks])
    assert new.shape == (2, 5) and len(marks.times) == 5 and marks.times == sorted(marks.times)


def test_the_spread_of_a_speed_up_is_that_of_its_turns():
    """A machine that is slow for a turn makes milliseconds spread, and ratios not."""
    turns = [{"prefill_ms": ms, "ttft_ms": 3.0, "decode_tokens_per_s": 5.0} for ms in (1.0, 2.0, 9.0)]
    ratios = [timing.ratios({**turn, "prefill_ms": 2 * turn["prefill_ms"]}, turn) for turn in turns]
    each = [turn | ratio for turn, ratio in zip(turns, ratios, strict=True)]
    found = timing.figures({key: [e[key] for e in each] for key in each[0]})
    assert found["iqr_ms"] == 4.0 and found["speedup"] == 2.0 and found["speedup_iqr"] == 0.0
    assert found["ttft_speedup_iqr"] == found["decode_speedup_iqr"] == 0.0


def test_spread():
    assert timing.spread([1.0]) == 0.0 and timing.spread([4.0, 1.0, 2.0, 3.0]) == pytest.approx(1.5)


@pytest.mark.skipif(not memory.readable(torch.device("cpu")), reason="the resident set's mark cannot be set back here")
def test_resident_peak_sees_what_is_taken_and_nothing_else():
    size = 32 << 20
    for _ in range(2):  # the second time the pages were used before
        assert 0.95 * size < memory.resident_peak(lambda: torch.ones(size // 4)) < 1.5 * size
        assert memory.resident_peak(lambda: None) < 1 << 20


def test_memory_that_cannot_be_read_is_unavailable(answerer, asked, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROCESS", tmp_path)
    found = memory.peak_memory(answerer, {"unpatched": lambda: entered(answerer.model, Cell())}, asked, Turns())
    assert found == {"unpatched": {"peak_bytes": "unavailable", "source": "unavailable"}}


def test_flops_of_the_selection_are_counted(answerer, asked):
    """Of 16 tokens with 32 features the least costly choice is random's, which multiplies nothing."""
    methods = ("random", "divprune", "scope", "cdpruner")
    free, maxmin, coverage, dpp = (cost(answerer, Cell(name, 4), asked[:1])["forward_flops"] for name in methods)
    assert maxmin - free == 2 * (16 + 4) * 16 * 32
    assert coverage - free == 2 * 16 * 16 * 32 + 2 * 1 * 17 * 32, "and what the CLS row of the tower looks at"
    assert dpp - free >= 2 * 4 * 16 * 32 + 4 * 4 * 16


def test_flops_of_the_librarys_own_attention():
    q, kv = torch.ones(2, 4, 3, 8), torch.ones(2, 2, 5, 8)
    with counter() as count:
        torch.ops.vtc.merged_attention(q, kv, kv, None, None, 1.0)
        torch.ops.vtc.decode_merged(q[:, :, :1], kv, kv, None, 1.0)
        torch.ops.vtc.match(q[:, 0], kv[:, 0], torch.ones(2, 5, dtype=torch.bool), False, 0)
    assert count.get_total_flops() == 4 * 2 * 4 * (3 + 1) * 5 * 8 + 2 * 2 * 3 * 5 * 8
