"""Accuracy over what it costs (tokens, FLOPs, milliseconds) and over confidence, a line a method.

matplotlib is imported only here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vtc.eval.cells import UNPATCHED
from vtc.eval.report.tables import split

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b3294", "#8c510a", "#1b7837", "#b2182b")
BASELINES = ("random", "grid", "pool")
MARKERS = "os^vP"  # the next one each time the colours start again
GREYS = ("#555555", "#888888", "#b0b0b0")


def available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


@dataclass(frozen=True)
class Axis:
    """What accuracy is drawn over: a file's name, a label, and the figure of a cell (None: not known)."""

    file: str
    label: str
    read: Callable[[dict[str, Any], dict[str, Any]], float | None]  # (cell of the summary, its entry in measured)


AXES = (
    Axis("pareto.png", "vision tokens a picture, averaged over decoder layers", lambda cell, _: cell["tokens"]),
    Axis("pareto_flops.png", "decoder prefill, GFLOPs a prompt", lambda cell, _: giga(cell.get("flops"))),
    Axis("pareto_ms.png", "prefill, ms measured", lambda _, entry: entry.get("timing", {}).get("prefill_ms")),
)


def giga(value: float | None) -> float | None:
    return None if value is None else value / 1e9


def curves(
    summary: dict[str, Any], measured: dict[str, Any], axis: Axis = AXES[0]
) -> dict[str, list[tuple[float, float, float]]]:
    """For each method its (cost, accuracy %, standard error %), from the fewest tokens to the most."""
    out: dict[str, list[tuple[float, float, float]]] = {}
    cells = {name: cell for name in summary["order"] if (cell := summary["cells"][name]).get("questions")}
    for name, cell in sorted(cells.items(), key=lambda pair: pair[1]["tokens"]):
        if name != UNPATCHED:
            cost = axis.read(cell, measured.get(name, {}))
            if cost:
                point = (cost, 100 * cell["accuracy"], 100 * (cell["stderr"] or 0))
                out.setdefault(name.rpartition("@")[0], []).append(point)
    methods = dict.fromkeys(name.rpartition("@")[0] for name in cells)
    return {method: out[method] for method in methods if method in out}


def styles(methods: list[str]) -> dict[str, dict[str, Any]]:
    """Baselines grey, the others coloured; ``+share`` dashed and other options dotted, in their method's colour."""
    plain = list(dict.fromkeys(family(m) for m in methods))
    colored = [m for m in plain if m not in BASELINES]
    color = {m: COLORS[n % len(COLORS)] for n, m in enumerate(colored)}
    marker = {m: MARKERS[n // len(COLORS) % len(MARKERS)] for n, m in enumerate(colored)}
    color |= {m: GREYS[BASELINES.index(m)] for m in plain if m in BASELINES}
    return {
        m: {
            "color": color[family(m)],
            "linestyle": "-" if m == family(m) else "--" if "+" in m else ":",
            "marker": "D" if "+" in m else marker.get(family(m), "o"),
            "markerfacecolor": color[family(m)] if m == family(m) else "white",
        }
        for m in methods
    }


def family(method: str) -> str:
    """A method's name without its options."""
    return method.split("+")[0].split(":")[0]


def pareto(summary: dict[str, Any], measured: dict[str, Any], path: Path, axis: Axis = AXES[0]) -> None:
    """Draw the figure into ``path``; its suffix says the format."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    lines, base = curves(summary, measured, axis), summary["cells"][UNPATCHED]
    figure = Figure(figsize=(8.6, max(5.2, 0.4 + 0.21 * len(lines))), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for method, style in styles(list(lines)).items():
        x, y, error = zip(*lines[method], strict=True)
        axes.errorbar(x, y, yerr=error, label=method, linewidth=1.7, markersize=4.5, elinewidth=0.7, **style)
    if base.get("questions"):
        full, cost = 100 * base["accuracy"], axis.read(base, measured.get(UNPATCHED, {}))
        axes.axhline(full, color="black", linewidth=1, linestyle=":")
        note(axes, full, f"unpatched {full:.1f} %" + (f" at {cost:.3g}" if cost else ""), "black")
    if (low := 100 * summary["floor"]) > 0:
        axes.axhline(low, color="#999999", linewidth=0.8, linestyle=":")
        note(axes, low, "floor", "#777777")
    if costs := sorted({p[0] for points in lines.values() for p in points}):
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(apart(costs)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.3g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel=f"{axis.label} (log scale)", ylabel="accuracy (%)")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if lines:
        legend_by_height(axes, lines)
    figure.savefig(path)


def note(axes: Any, height: float, text: str, color: str) -> None:
    """A text on top of a horizontal line, at the left."""
    place = {"xycoords": ("axes fraction", "data"), "xytext": (0, 4), "textcoords": "offset points"}
    axes.annotate(text, (0.01, height), fontsize=9, color=color, **place)


def apart(values: list[float], factor: float = 1.3) -> list[float]:
    """The values that a log axis can label without overlap."""
    out: list[float] = []
    for value in values:
        if not out or value >= factor * out[-1]:
            out.append(value)
    return out


def legend_by_height(axes: Any, lines: dict[str, list[tuple[float, float, float]]]) -> None:
    """A legend beside the axes, best mean on top; methods that miss budgets which others reach come last."""
    handles, labels = axes.get_legend_handles_labels()

    def rank(n: int) -> tuple[int, float]:
        points = lines[labels[n]]
        return -len(points), -sum(accuracy for _, accuracy, _ in points) / len(points)

    order = sorted(range(len(labels)), key=rank)
    place = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "frameon": False}
    axes.legend([handles[n] for n in order], [labels[n] for n in order], fontsize=9, **place)


def reliability(summary: dict[str, Any], path: Path) -> None:
    """A panel a budget: accuracy over confidence, a line a method, the unpatched model in black. On the diagonal a
    probability means what it says."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = calibrated(summary)
    budgets = [budget for budget in panels if budget != "all"] or ["all"]
    figure = Figure(figsize=(3.1 * len(budgets) + 1.8, 3.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    look = styles(list(dict.fromkeys(method for budget in budgets for method in panels[budget])))
    plain = {"color": "black", "linestyle": "-", "marker": "o"}
    for n, budget in enumerate(budgets):
        axes = figure.add_subplot(1, len(budgets), n + 1)
        axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8, linestyle=":")
        for method, bins in (panels.get("all", {}) | panels[budget]).items():
            x, y = zip(*((b["confidence"], b["accuracy"]) for b in bins if b["count"]), strict=True)
            style = plain if method == UNPATCHED else look[method]
            axes.plot(x, y, label=method, linewidth=1.3, markersize=3.5, **style)
        axes.set(
            title=budget, xlabel="confidence", ylabel="" if n else "accuracy", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03)
        )
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    lines = {str(line.get_label()): line for axes in figure.axes for line in axes.lines[1:]}
    figure.legend(list(lines.values()), list(lines), loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(path)


def calibrated(summary: dict[str, Any]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """By budget in words, by method: the bins of confidence of the cells that have them."""
    out: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for name in summary["order"]:
        if found := summary["cells"][name].get("calibration"):
            method, budget = split(name)
            out.setdefault(budget, {})[method] = found["bins"]
    return out
