"""A set of texts in 8 bytes each: the answers of Python's own set."""

from __future__ import annotations

import random

from vtc.eval.data import seen_texts as seen
from vtc.eval.data.seen_texts import Seen


def test_as_a_plain_set(monkeypatch):
    monkeypatch.setattr(seen, "RECENT", 16)  # sorted in many times
    draw, plain, found = random.Random(0), set(), Seen()
    for _ in range(2000):
        text = f"id-{draw.randrange(600)}"
        assert found.add(text) == (text not in plain)
        plain.add(text)
    assert len(found.sorted) + len(found.recent) == len(plain) and len(found.sorted) > 500


def test_any_text():
    found = Seen()
    for text in ("", "a", "\udcff", "é" * 1000):
        assert found.add(text) and not found.add(text)
