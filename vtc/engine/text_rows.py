"""The rows of prompts that are no vision tokens, as they stand behind a cut."""

from __future__ import annotations

from vtc.engine.rows import choose_rows
from vtc.engine.state import Prefill, Rows


def text_rows(p: Prefill) -> Rows:
    """The rows of the prompts that are no vision tokens, as they stand in the states behind the last cut."""
    if p.text is None or p.text[0] is not p.last_cut:  # one object for all layers, as masks are made once for each
        p.text = p.last_cut, text_behind(p, p.last_cut)
    return p.text[1]


def text_behind(p: Prefill, cut: Rows | None) -> Rows:
    layout = p.layout
    kept = layout.text if cut is None else layout.text.gather(1, cut.rows)  # fillers are rows that are there
    inside, valid = choose_rows(kept, layout.spare if cut is None else ~kept, layout.text_count)
    return Rows(inside if cut is None else cut.rows.gather(1, inside), valid, None, inside)
