"""Reliability diagrams: accuracy over confidence, a small panel a method, of bins with enough answers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from vtc.eval.report.tables import split
from vtc.eval.results.statistics import wilson
from vtc.files import escape

LEAST = 5  # answers of a bin that is drawn
COLUMNS = 5  # panels side by side
COLORS = ("#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#7b3294")  # of budgets, in the order asked
MARKERS = "os^Dvp"
BESIDE = 0.014  # how far a budget's points stand beside the ones of the budget before, so that no bar hides another


def draw(summary: dict[str, Any], path: Path) -> None:
    """A panel a method, its budgets as points with 95 % intervals. On the dotted line a probability means what it
    says; a point beneath it is an answer surer than it is right."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = calibrated(summary)
    looks = styles([budget for found in panels.values() for budget in found])
    wide = min(COLUMNS, len(panels))
    high = math.ceil(len(panels) / wide)
    figure = Figure(figsize=(2.5 * wide + 1.0, 2.5 * high + 0.9), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    grid = list(figure.subplots(high, wide, sharex=True, sharey=True, squeeze=False).flat)
    for axes, (method, found) in zip(grid, panels.items(), strict=False):
        panel(axes, method, found, looks)
    for n in range(len(panels), len(grid)):  # the panel above an empty place has the labels
        grid[n].set_axis_off()
        grid[n - wide].tick_params(labelbottom=True)
    figure.supxlabel("confidence", fontsize=10)
    figure.supylabel("accuracy", fontsize=10)
    handles = {str(h.get_label()): h for axes in figure.axes for h in axes.get_legend_handles_labels()[0]}
    figure.legend(handles.values(), handles, loc="outside right upper", title="budget", frameon=False, fontsize=8)
    figure.suptitle(caption(panels), fontsize=9)
    figure.savefig(path)


def calibrated(summary: dict[str, Any]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """By method, by budget in words: the bins of confidence of the cells that have them."""
    out: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in summary["order"]:
        if found := summary["cells"][name].get("calibration"):
            method, budget = split(name)
            out.setdefault(method, {})[budget] = found["bins"]
    return out


def enough(bins: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [b for b in bins if b["count"] >= LEAST]


def caption(panels: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """What is drawn, and of how many answers."""
    cells = [bins for found in panels.values() for bins in found.values()]
    whole = sum(b["count"] for bins in cells for b in bins)
    drawn = sum(b["count"] for bins in cells for b in enough(bins))
    return (
        f"Bins of at least {LEAST} answers ({drawn:,} of {whole:,} answers), 95 % Wilson intervals. "
        "Below the dotted line: surer than right.\n"
        "Budgets stand a little beside each other, so that all are seen."
    )


def panel(axes: Any, method: str, found: dict[str, list[dict[str, Any]]], looks: dict[str, dict[str, Any]]) -> None:
    """One method: a point a bin and budget."""
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":")
    for n, (budget, bins) in enumerate(found.items()):
        kept = enough(bins)
        if kept:
            aside = BESIDE * (n - (len(found) - 1) / 2)
            x, y = [b["confidence"] + aside for b in kept], [b["accuracy"] for b in kept]
            reach = [[abs(b["accuracy"] - end) for end in wilson(b["accuracy"], b["count"])] for b in kept]
            bars = list(zip(*reach, strict=True))  # below and above
            axes.plot(x, y, linewidth=0.9, alpha=0.35, color=looks[budget]["color"])
            axes.errorbar(
                x, y, yerr=bars, label=budget, linestyle="none", markersize=4, elinewidth=0.9, **looks[budget]
            )
    if not any(enough(bins) for bins in found.values()):
        axes.text(0.5, 0.5, f"no bin of {LEAST} answers", ha="center", fontsize=8, color="#777777")
    axes.set_title(escape.figure(method), fontsize=9)
    axes.set(xlim=(-0.03, 1.05), ylim=(-0.03, 1.05))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def styles(budgets: list[str]) -> dict[str, dict[str, Any]]:
    """A colour and a marker a budget, in the order they were asked; the unpatched model's black."""
    asked = [budget for budget in dict.fromkeys(budgets) if budget != "all"]
    looks = {
        budget: {"color": COLORS[n % len(COLORS)], "marker": MARKERS[n % len(MARKERS)]}
        for n, budget in enumerate(asked)
    }
    return looks | {"all": {"color": "black", "marker": "o"}}
