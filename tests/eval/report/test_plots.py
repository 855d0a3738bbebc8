"""Accuracy over costs: ticks where budgets were asked, the spread of what was timed."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.eval.report.test_tables import MEASURED, SETTINGS, line, summary  # noqa: F401  # a fixture
from vtc.eval.report import plots
from vtc.eval.results.summary import summarise

TOKENS, ROWS, BYTES, FLOPS, MILLISECONDS = plots.AXES


@pytest.fixture
def axes(monkeypatch):
    """The axes of the figure that is drawn."""
    figure = pytest.importorskip("matplotlib.figure")
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, path: seen.append(self.axes[0]))
    seen = []
    return seen


def ticks(axes):
    return [(place, text.get_text()) for place, text in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)]


def run(tokens):
    """A run whose cells left these numbers of tokens."""
    lines = [line(name, n, float(n < 6), tokens=count) for name, count in tokens.items() for n in range(8)]
    costs = dict.fromkeys(tokens, {"kv_bytes": 1e6, "flops": 1e9})
    return summarise(lines, list(tokens), costs) | {"settings": SETTINGS}


def test_pareto(summary, tmp_path):  # noqa: F811
    pytest.importorskip("matplotlib")
    for axis in plots.AXES:
        plots.pareto(summary, MEASURED, tmp_path / axis.file, axis)
        assert Image.open(tmp_path / axis.file).size[0] > 1000
    assert plots.curves(summary, {}, MILLISECONDS) == {}, "nothing measured, nothing drawn"
    styles = plots.styles(["visionzip", "visionzip+share", "random:layer=1", "random"])
    assert styles["visionzip"]["color"] == styles["visionzip+share"]["color"] != styles["random"]["color"]
    assert styles["random:layer=1"]["color"] == styles["random"]["color"] == plots.GREYS[0]


def test_ticks_are_the_budgets_asked_for(axes):
    left = {"unpatched": 196.0, "adaptive@98": 97.8, "adaptive@49": 48.9, "adaptive@24": 23.6, "grid@24": 24.0}
    plots.pareto(run(left), {}, "nowhere", TOKENS)
    assert ticks(axes[0]) == [(24, "24"), (49, "49"), (98, "98"), (196, "196")]


def test_ticks_of_shares_say_both(axes):
    left = {"unpatched": 196.0, "adaptive@0.5": 97.8, "adaptive@0.125": 23.6}
    plots.pareto(run(left), {}, "nowhere", TOKENS)
    assert ticks(axes[0]) == [(24, "24\n12.5 %"), (98, "98\n50 %"), (196, "196")]


def test_texts_of_ticks_keep_apart(axes):
    plots.pareto(run({"unpatched": 196.0, "grid@20": 20.0, "grid@98": 98.0, "grid@100": 100.0}), {}, "nowhere", TOKENS)
    assert ticks(axes[0]) == [(20, "20"), (98, "98"), (100, ""), (196, "196")]


def test_milliseconds_have_their_spread(summary, axes):  # noqa: F811
    assert plots.curves(summary, MEASURED, MILLISECONDS)["grid"][0].spread == 0.25
    assert plots.curves(summary, MEASURED, FLOPS)["grid"][0].spread == 0.0
    plots.pareto(summary, MEASURED, "nowhere", MILLISECONDS)
    grid, whole = axes[0].containers
    for drawn, low, high in ((grid, 12.25, 12.75), (whole, 9.5, 10.5)):
        assert drawn.has_xerr and [x for x, _ in drawn[2][0].get_segments()[0]] == [low, high]
    plots.pareto(summary, MEASURED, "nowhere", FLOPS)
    assert not any(drawn.has_xerr for drawn in axes[1].containers)


def test_round_values_hold_the_bars():
    points = [plots.Point(20.0, 50, 2.0, 1), plots.Point(200.0, 50, 10.0, 1)]
    found = plots.round_values(points)
    assert min(found) == 18 and max(found) == 210 and all(float(text) == value for value, text in found.items())
    assert plots.round_values([]) == {} and list(plots.round_values([plots.Point(5.0, 50, 0, 0)])) == [5.0]
