"""Accuracy over what it costs (tokens, FLOPs, milliseconds), a line a method."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vtc.eval.cells import UNPATCHED
from vtc.files import escape
from vtc.methods._spelling import literal
from vtc.tokens import Budget

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b3294", "#8c510a", "#1b7837", "#b2182b")
BASELINES = ("random", "grid", "pool")
MARKERS = "os^vP"  # the next one each time the colours start again
GREYS = ("#555555", "#888888", "#b0b0b0")


def available() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


Read = Callable[[dict[str, Any], dict[str, Any]], float | None]  # (cell of the summary, its entry in measured)


@dataclass(frozen=True)
class Axis:
    """What accuracy is drawn over: a file's name, a label, the figure of a cell and its ± (None: not known)."""

    file: str
    label: str
    read: Read
    spread: Read = lambda _cell, _entry: None


AXES = (
    Axis("pareto.png", "vision tokens that are keys, averaged over decoder layers", lambda cell, _: cell["tokens"]),
    Axis("pareto_rows.png", "vision rows that run, averaged over decoder layers", lambda cell, _: cell.get("rows")),
    Axis("pareto_kv.png", "KV cache after the prefill, MB a prompt", lambda cell, _: mega(cell.get("kv_bytes"))),
    Axis("pareto_flops.png", "decoder prefill, GFLOPs a prompt", lambda cell, _: giga(cell.get("flops"))),
    Axis(
        "pareto_ms.png",
        "prefill, ms measured, ± half the inter-quartile range over turns",
        lambda _, entry: entry.get("timing", {}).get("prefill_ms"),
        lambda _, entry: half(entry.get("timing", {}).get("iqr_ms")),
    ),
)
TOKENS = AXES[0]


def giga(value: float | None) -> float | None:
    return None if value is None else value / 1e9


def mega(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def half(value: float | None) -> float | None:
    return None if value is None else value / 2


class Point(NamedTuple):
    """A cell in the figure, and what its bars reach to each side and up and down; accuracies in percent."""

    cost: float
    accuracy: float
    spread: float
    stderr: float


def curves(summary: dict[str, Any], measured: dict[str, Any], axis: Axis = TOKENS) -> dict[str, list[Point]]:
    """For each method its points, from the fewest tokens to the most."""
    out: dict[str, list[Point]] = {}
    cells = {name: cell for name in summary["order"] if (cell := summary["cells"][name]).get("questions")}
    for name, cell in sorted(cells.items(), key=lambda pair: pair[1]["tokens"]):
        if name != UNPATCHED:
            if found := point(cell, measured.get(name, {}), axis):
                out.setdefault(name.rpartition("@")[0], []).append(found)
    methods = dict.fromkeys(name.rpartition("@")[0] for name in cells)
    return {method: out[method] for method in methods if method in out}


def point(cell: dict[str, Any], entry: dict[str, Any], axis: Axis) -> Point | None:
    """Where a cell stands; None where it has no answers or its cost is not known."""
    cost = axis.read(cell, entry) if cell.get("questions") else None
    if not cost:
        return None
    return Point(cost, 100 * cell["accuracy"], axis.spread(cell, entry) or 0.0, 100 * (cell["stderr"] or 0.0))


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


def pareto(summary: dict[str, Any], measured: dict[str, Any], path: Path, axis: Axis = TOKENS) -> None:
    """Draw the figure into ``path``; its suffix says the format."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = {escape.figure(method): points for method, points in curves(summary, measured, axis).items()}
    base = summary["cells"][UNPATCHED]
    figure = Figure(figsize=(8.6, max(5.2, 0.4 + 0.21 * len(lines))), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for method, style in styles(list(lines)).items():
        errorbar(axes, lines[method], label=method, linewidth=1.7, markersize=4.5, **style)
    whole = point(base, measured.get(UNPATCHED, {}), axis)
    if whole:
        errorbar(axes, [whole], color="black", marker="*", markersize=9)
    if base.get("questions"):
        full = 100 * base["accuracy"]
        words = f"unpatched: {full:.1f} %" + (f"\n(star, at {whole.cost:.3g})" if whole else "")
        axes.axhline(full, color="black", linewidth=1, linestyle=":", label=words)
    if (low := 100 * summary["floor"]) > 0:
        axes.axhline(low, color="#999999", linewidth=0.8, linestyle=":")
        place = axes.get_yaxis_transform()  # x of the axes, y of the data
        axes.text(0.01, low, "floor", transform=place, fontsize=9, color="#777777", verticalalignment="bottom")
    axes.set_xscale("log", base=2)
    points = [p for line in [*lines.values(), [whole] if whole else []] for p in line]
    label(axes, budgets(summary) if axis is TOKENS else round_values(points))
    axes.set(xlabel=f"{axis.label} (log scale)", ylabel="accuracy (%)")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if lines:
        legend_by_height(axes, lines)
    figure.savefig(path)


def errorbar(axes: Any, points: list[Point], **style: Any) -> None:
    """Points joined by a line, with bars up and down and, where there is a spread, to the sides."""
    cost, accuracy, spread, stderr = zip(*points, strict=True)
    axes.errorbar(cost, accuracy, xerr=spread if any(spread) else None, yerr=stderr, elinewidth=0.7, **style)


def budgets(summary: dict[str, Any]) -> dict[float, str]:
    """The budgets that were asked for, in tokens, and what to call each; shares need to know how many all are."""
    full = summary["cells"][UNPATCHED].get("tokens")
    out = {full: f"{full:.4g}"} if full else {}
    for name in summary["order"]:
        value = literal(name.rpartition("@")[2]) if name != UNPATCHED else None
        if isinstance(value, int):
            out[float(value)] = str(value)
        elif isinstance(value, float) and full:
            tokens = Budget(value).tokens(full)
            out[tokens] = f"{tokens:.4g}\n{100 * value:.4g} %"
    return out


def round_values(points: list[Point], count: int = 7) -> dict[float, str]:
    """Some short numbers from the least cost to the most, as far apart as a log axis wants them."""
    if not points:
        return {}
    low, high = min(max(p.cost - p.spread, p.cost / 2) for p in points), max(p.cost + p.spread for p in points)
    digits = 2 if high > 1.5 * low else 3
    texts = [f"{low * (high / low) ** (n / (count - 1)):.{digits}g}" for n in range(count)]
    return {float(text): f"{float(text):g}" for text in texts}


def label(axes: Any, places: dict[float, str]) -> None:
    """Ticks at these places alone; a text that would touch the one before it is left out."""
    from matplotlib.ticker import NullLocator

    shown, last = [], -math.inf
    for place in sorted(places):
        clear = math.log(place) - last >= 0.045 * math.log(max(places) / min(places))
        shown.append(places[place] if clear else "")
        last = math.log(place) if clear else last
    axes.set_xticks(sorted(places), shown)
    axes.xaxis.set_minor_locator(NullLocator())


def legend_by_height(axes: Any, lines: dict[str, list[Point]]) -> None:
    """A legend beside the axes: the unpatched model, then the best mean on top; methods that miss budgets which others
    reach come last."""
    handles, labels = axes.get_legend_handles_labels()

    def rank(n: int) -> tuple[float, float]:
        points = lines.get(labels[n])
        if points is None:  # no method
            return -math.inf, 0.0
        return -len(points), -sum(p.accuracy for p in points) / len(points)

    order = sorted(range(len(labels)), key=rank)
    place = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "frameon": False}
    axes.legend([handles[n] for n in order], [labels[n] for n in order], fontsize=9, **place)
