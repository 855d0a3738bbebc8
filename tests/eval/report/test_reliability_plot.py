"""Reliability diagrams: a panel a method, bins with enough answers, intervals around each point."""

from __future__ import annotations

import pytest
from PIL import Image

from vtc.eval.report import reliability

matplotlib = pytest.importorskip("matplotlib.figure")


def bins(*each):
    """(confidence, accuracy, count) of each."""
    return [{"confidence": c, "accuracy": a, "count": n} for c, a, n in each]


def summary(cells):
    found = {name: {"calibration": {"bins": each}} for name, each in cells.items()}
    return {"order": [*cells, "closed@1"], "cells": found | {"closed@1": {"closed": "no", "least": 2}}}


@pytest.fixture
def figure(monkeypatch):
    seen = []
    monkeypatch.setattr(matplotlib.Figure, "savefig", lambda self, path: seen.append(self))
    return seen


def test_a_panel_a_method(figure):
    full = bins((0.9, 0.8, 50))
    names = ["unpatched", *(f"m{n}@{budget}" for n in range(6) for budget in ("0.5", 8))]
    reliability.draw(summary(dict.fromkeys(names, full)), "nowhere")
    shown = [axes for axes in figure[0].axes if axes.axison]
    assert [axes.get_title() for axes in shown] == ["unpatched", *(f"m{n}" for n in range(6))]
    assert all(len(axes.containers) == 2 for axes in shown[1:]), "its two budgets"
    assert [text.get_text() for text in figure[0].legends[0].get_texts()] == ["all", "50 %", "8"]
    at = [axes.containers[n][0].get_xdata()[0] for axes in shown[1:2] for n in (0, 1)]
    assert 0.85 < at[0] < 0.9 < at[1] < 0.95, "side by side, so that one does not hide the other"


def test_bins_with_few_answers_are_left_out_and_the_figure_says_so(figure):
    cell = bins((0.2, 1.0, reliability.LEAST - 1), (0.5, 0.5, reliability.LEAST), (None, None, 0), (0.9, 1.0, 30))
    few = bins((0.4, 0.0, 1))
    reliability.draw(summary({"unpatched": cell, "grid@4": few}), "nowhere")
    one, other = figure[0].axes
    points = one.containers[0]
    assert list(points[0].get_xdata()) == [0.5, 0.9] and points.has_yerr
    assert not other.containers and "no bin of 5 answers" in [text.get_text() for text in other.texts]
    assert "at least 5 answers (35 of 40 answers)" in figure[0].get_suptitle()


def test_bars_are_wilson_intervals(figure):
    reliability.draw(summary({"unpatched": bins((0.9, 1.0, 10), (0.5, 0.5, 10))}), "nowhere")
    (drawn,) = figure[0].axes[0].containers
    ends = [[y for _, y in segment] for segment in drawn[2][0].get_segments()]
    assert ends[0] == pytest.approx([0.7225, 1.0], abs=1e-4)
    assert ends[1] == pytest.approx([0.2366, 0.7634], abs=1e-4)


def test_it_is_a_picture(tmp_path):
    reliability.draw(summary({"unpatched": bins((0.9, 0.8, 50)), "grid@4": bins((0.9, 0.8, 50))}), tmp_path / "a.png")
    assert len(Image.open(tmp_path / "a.png").convert("RGB").getcolors(1 << 24)) > 50
