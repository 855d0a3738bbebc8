"""A plan to read: the table of its layers, and a picture of what each candidate costs where."""

from __future__ import annotations

from pathlib import Path

from vtc.weights.planning.check import Check
from vtc.weights.planning.plan import Plan


def table(plan: Plan, check: Check | None = None) -> str:
    """Markdown: what ``check`` measured; a row a layer, a column a candidate (its foreseen divergence in nats), the
    chosen one in bold."""
    texts = list(dict.fromkeys(t.passes for t in plan.trials))
    found = {(t.layer, t.passes): t for t in plan.trials}
    lines = [
        f"{plan.bits:.2f} bits a weight, {plan.bytes:,} bytes in all; {plan.damage:.3g} nats foreseen.",
        "",
        *([str(check), ""] if check else []),
        f"| layer | {' | '.join(texts)} |",
        f"|---|{'---:|' * len(texts)}",
    ]
    for layer in plan.chosen:
        cells = []
        for text in texts:
            trial = found.get((layer, text))
            value = "-" if trial is None else f"{trial.divergence:.2e}"
            cells.append(f"**{value}**" if plan.chosen[layer] == text else value)
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(plan: Plan, path: str | Path) -> None:
    """A line a candidate: its divergence at each layer (log scale), the chosen ones marked. Needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers = list(plan.chosen)
    texts = list(dict.fromkeys(t.passes for t in plan.trials))
    least = min((t.divergence for t in plan.trials if t.divergence), default=1e-9)
    figure = Figure(figsize=(max(6, 0.16 * len(layers)), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for text in texts:
        points = {t.layer: max(t.divergence, least) for t in plan.trials if t.passes == text}
        at = [n for n, layer in enumerate(layers) if layer in points]
        (line,) = axes.plot(at, [points[layers[n]] for n in at], ".-", linewidth=0.8, markersize=3, label=text)
        chosen = [n for n in at if plan.chosen[layers[n]] == text]
        axes.plot(chosen, [points[layers[n]] for n in chosen], "o", color=line.get_color(), markersize=6)
    short = [".".join(layer.split(".")[-3:]) for layer in layers]
    step = max(1, len(layers) // 60)
    axes.set_xticks(range(0, len(layers), step), short[::step], rotation=90, fontsize=6)
    axes.set_yscale("log")
    axes.set_ylabel("foreseen divergence of the next token (nats)")
    axes.set_title(f"each candidate alone; large dots: chosen ({plan.bits:.2f} bits a weight)")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=150)
