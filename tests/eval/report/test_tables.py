"""From lines to figures to text: numbers checked by hand, slow called slow, nothing invented."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from vtc.eval.report import html, tables
from vtc.eval.results.summary import summarise
from vtc.files.atomic import write_json

SETTINGS = {
    "benchmark": {"name": "scenes", "split": "test"},
    "model_class": "Llava",
    "dtype": "float32",
    "device": "cpu",
    "attention": "sdpa",
    "processor": "P",
    "versions": {"torch": "2", "transformers": "5"},
}


def line(cell, n, score, kind="color", group="one-hop", tokens=16.0):
    answer = {
        "answer": "x",
        "expected": ["red" if n % 4 else "blue"],
        "score": score,
        "tokens": tokens,
        "confidence": 0.9,
    }
    return {"cell": cell, "row": n, "id": str(n), "type": kind, "group": group, **answer}


@pytest.fixture
def summary():
    lines = [line("unpatched", n, float(n != 7)) for n in range(8)]
    lines += [line("grid@0.25", n, float(n < 4), tokens=4.0) for n in range(7)]
    lines += [{"cell": "grid@0.25", "row": 7, "id": "7", "type": "color", "group": "one-hop", "error": "q:7: broken"}]
    lines += [{"cell": "fastv@0.25", "closed": "keeps all 16", "least": 5}]
    lines += [line(cell, 8, 1.0, "digit_beside", "two-hop") for cell in ("unpatched", "grid@0.25")]
    costs = {"unpatched": {"rows": 16.0, "kv_bytes": 2e6, "flops": 4e9}, "grid@0.25": {"kv_bytes": 5e5, "flops": 1e9}}
    return summarise(lines, ["unpatched", "grid@0.25", "fastv@0.25"], costs) | {"settings": SETTINGS}


ANSWERING = {"ttft_ms": 11.0, "ttft_iqr_ms": 1.0, "ttft_speedup": 1.0, "decode_tokens_per_s": 40.0, "decode_iqr": 2.0}
TIMING = ANSWERING | {"decode_speedup": 1.0, "repeats": 5, "batch": 1}
REST = {"cost": {"forward_flops": 2e9}, "memory": {"peak_bytes": 2.5e6}, "energy": {"joules": "unavailable"}}
MEASURED = {
    "unpatched": REST | {"timing": TIMING | {"prefill_ms": 10.0, "iqr_ms": 1.0, "speedup": 1.0, "speedup_iqr": 0.0}},
    "grid@0.25": REST | {"timing": TIMING | {"prefill_ms": 12.5, "iqr_ms": 0.5, "speedup": 0.8, "speedup_iqr": 0.1}},
}


def test_figures(summary):
    base, grid = summary["cells"]["unpatched"], summary["cells"]["grid@0.25"]
    assert base["accuracy"] == pytest.approx(8 / 9) and base["errors"] == 0
    assert base["stderr"] == pytest.approx(math.sqrt((8 / 9) * (1 / 9) / 8))
    assert summary["floor"] == pytest.approx((6 + 1) / 9)  # "red" six times of eight, and the one two-hop answer
    assert grid["questions"] == 8 and grid["errors"] == 1 and grid["accuracy"] == pytest.approx(5 / 8)
    assert grid["retention"] == pytest.approx((5 / 8 - 7 / 9) / (8 / 9 - 7 / 9))
    middle, low, high = grid["change"]  # of the eight both have answered, three fell from 1 to 0
    assert middle == pytest.approx(-3 / 8) and low < middle < high <= 0
    assert grid["types"]["color"]["accuracy"] == pytest.approx(4 / 7)
    assert grid["groups"]["two-hop"]["questions"] == 1
    assert grid["kv_bytes"] == 5e5 and summary["cells"]["fastv@0.25"] == {"closed": "keeps all 16", "least": 5}


def test_markdown(summary):
    page = tables.markdown(summary, MEASURED)
    assert "| unpatched | all | 88.9 ± 11.1 | - | 100.0 | 16.0 | 16.0 | 10.00 ± 0.50 | 1 | 2 MB | 4 |" in page
    assert "| grid | 25 % | 62.5 ± 18.3 |" in page and "0.80x ± 0.05 (slower)" in page and "500 kB" in page
    assert "| fastv | 25 % | least 5 | - | - | - | - | - | - | - | - |" in page
    assert "| method | budget | **one-hop** | color | **two-hop** | digit_beside |" in page
    assert "1 answers are missing" in page or "1 answer" in page
    widths = {row.count("|") for row in page.splitlines() if row.startswith("| grid")}
    assert widths == {12, 7}, "the figures, by type, beyond accuracy"


@pytest.mark.parametrize(
    ("factor", "spread", "want"),
    [
        (1.08, 0.04, "1.08x ± 0.02"),
        (1.08, 0.4, "1.08x ± 0.20 (unclear)"),
        (0.92, 0.04, "0.92x ± 0.02 (slower)"),
        (0.92, 0.4, "0.92x ± 0.20 (unclear)"),
        (1.5, 0.5, "1.50x ± 0.25 (unclear)"),
    ],
)
def test_a_speed_up_within_its_spread_is_unclear(factor, spread, want):
    timing = {"speedup": factor, "speedup_iqr": spread, "repeats": 3}
    assert tables.speed(timing) == want
    assert tables.speed({f"ttft_{k}": v for k, v in timing.items()} | timing, "ttft_speedup") == want
    assert tables.speed(timing | {"repeats": 1}) == f"{factor:.2f}x (one turn)", "one turn has no spread"


def test_speed_ups_of_a_run_that_kept_no_spread():
    assert tables.speed({"speedup": 0.8, "repeats": 3}) == "0.80x (slower)"
    assert tables.speed({"speedup": 1.2, "repeats": 3}) == "1.20x"


def test_every_table_tells_what_is_unclear(summary):
    grid = MEASURED["grid@0.25"]
    noisy = MEASURED | {"grid@0.25": grid | {"timing": grid["timing"] | {"speedup_iqr": 0.3}}}
    for measured, count in ((MEASURED, 1), (noisy, 2)):
        page = tables.markdown(summary, measured)
        assert page.count("(unclear)") == count, "once in the note below, once a cell"
    assert "(unclear)" not in tables.markdown(summary, {})
    run = html.Run("scenes", Path("nowhere"), summary, noisy)
    assert "<td class=unclear>0.80x ± 0.15 (unclear)</td>" in html.page("report", [run])


def test_nothing_measured_is_a_dash(summary):
    assert "| 16.0 | 16.0 | - | - | 2 MB |" in tables.markdown(summary, {})


def test_no_answers_are_no_numbers():
    empty = summarise([], ["unpatched"], {}) | {"settings": SETTINGS}
    page = tables.markdown(empty, {})
    assert "| unpatched | all | - | - | - | - | - | - | - | - |" in page and "nan" not in page


def test_bytes_text():
    assert [tables.bytes_text(n) for n in (999, 1e3, 2.5e6, 3e9)] == ["999 B", "1 kB", "2.5 MB", "3 GB"]


def test_json_has_no_nan_and_equal_data_is_equal_bytes(tmp_path):
    write_json(tmp_path / "a.json", {"b": math.nan, "a": [1.0, math.inf]})
    write_json(tmp_path / "b.json", {"a": [1.0, math.inf], "b": math.nan})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1.0, None], "b": None}
