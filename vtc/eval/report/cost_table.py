"""The costs of a run as a table: time to the first token, decode speed, memory, energy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vtc.eval.report.tables import bytes_text, grid, speed, split

HEAD = (
    *("method", "budget", "batch", "first token ms", "speed-up", "decode tokens/s", "speed-up"),
    *("peak memory", "joules a question", "GFLOPs, whole forward"),
)


def rows(measured: dict[str, Any]) -> list[list[str]]:
    """A row a cell and timed batch size; a batch of one first. Medians ± half the inter-quartile range."""
    out = []
    for name, entry in measured.items():
        base = split(name)[1] == "all"
        for timing in (entry[key] for key in ("timing_single", "timing") if key in entry):
            whole = timing is entry.get("timing")  # memory and energy are of this batch
            out.append(
                [
                    *split(name),
                    str(timing["batch"]),
                    f"{timing['ttft_ms']:.2f} ± {timing['ttft_iqr_ms'] / 2:.2f}",
                    "1" if base else speed(timing, "ttft_speedup"),
                    f"{timing['decode_tokens_per_s']:.1f} ± {timing['decode_iqr'] / 2:.1f}",
                    "1" if base else speed(timing, "decode_speedup"),
                    either(entry["memory"]["peak_bytes"], bytes_text) if whole else "",
                    either(entry["energy"]["joules"], lambda v: f"{v:.3g}") if whole else "",
                    f"{entry['cost']['forward_flops'] / 1e9:.3g}",
                ]
            )
    return out


def either(value: float | str, form: Callable[[float], str]) -> str:
    """A number in ``form``, or the word that stands for it."""
    return value if isinstance(value, str) else form(value)


def markdown(measured: dict[str, Any]) -> list[str]:
    """The table and its title; nothing where nothing was timed."""
    found = rows(measured)
    return (
        ["Time, memory and energy (docs/evaluation.md says how each is measured):", grid(HEAD, found)] if found else []
    )
