"""Measured costs as text: units, both batch sizes, and the word unavailable where there is no number."""

from __future__ import annotations

from vtc.eval.report import cost_table

TIMING = {"ttft_ms": 12.5, "ttft_iqr_ms": 1.0, "ttft_speedup": 0.8, "decode_tokens_per_s": 40.0, "decode_iqr": 2.0}


def entry(**parts):
    timing = TIMING | {"decode_speedup": 1.25, "batch": 4, "repeats": 3}
    memory, energy = {"peak_bytes": "unavailable"}, {"joules": "unavailable"}
    return {"cost": {"forward_flops": 2.5e9}, "timing": timing, "memory": memory, "energy": energy} | parts


def test_rows():
    both = entry(
        timing_single=TIMING | {"decode_speedup": 1.0, "decode_speedup_iqr": 0.1, "batch": 1, "repeats": 3},
        memory={"peak_bytes": 2.5e6},
    )
    one, batch, other = cost_table.rows({"grid@0.25": both, "unpatched": entry(energy={"joules": 1.5})})
    assert one == [
        "grid",
        "25 %",
        "1",
        "12.50 ± 0.50",
        "0.80x (slower)",
        "40.0 ± 1.0",
        "1.00x ± 0.05 (unclear)",
        "",
        "",
        "2.5",
    ]
    assert batch[2] == "4" and batch[6:] == ["1.25x", "2.5 MB", "unavailable", "2.5"]
    assert other[:2] == ["unpatched", "all"] and other[4] == other[6] == "1" and other[7:9] == ["unavailable", "1.5"]


def test_nothing_timed_is_no_table():
    assert cost_table.markdown({"unpatched": {"cost": {"forward_flops": 1.0}}}) == [] == cost_table.markdown({})
