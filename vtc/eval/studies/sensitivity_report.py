"""``sensitivity.md`` and ``sensitivity.png``: one row a decoder layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vtc.eval.report import plots
from vtc.files import escape
from vtc.files.atomic import write_atomic, write_text

STYLES = {"random": {"linestyle": "--", "marker": "o"}, "fastv": {"linestyle": "-", "marker": "s"}}
LEAST = 1e-4  # nats: the floor of the plot's log axis


def write_report(found: dict[str, Any], folder: Path) -> None:
    """The table, and the plot where matplotlib is installed."""
    write_text(folder / "sensitivity.md", table(found))
    if plots.available():
        write_atomic(folder / "sensitivity.png", lambda path: draw(found, path))


def table(found: dict[str, Any]) -> str:
    """Markdown: attention to vision tokens, then accuracy and divergence of each cut, by layer."""
    cuts = list(found["cuts"].values())
    keeps, layers = sorted({c["keep"] for c in cuts}, reverse=True), sorted({c["layer"] for c in cuts})
    columns = [(rule, keep) for keep in keeps for rule in ("random", "fastv")]
    by_place = {(c["rule"], c["keep"], c["layer"]): c for c in cuts}
    base = found["unpatched"]
    lines = [
        f"# Sensitivity of {escape.markdown(found['settings']['model'] or found['settings']['model_class'])}",
        "",
        f"{base['questions']} questions, {base['tokens']:.0f} vision tokens each, unpatched "
        f"{100 * base['accuracy']:.1f} %. A cell says what is left when only that share of the tokens goes into the "
        "layer and those after it: accuracy, and in brackets the divergence of the next token (KL, nats). "
        "*attention*: what the prompt's last row gives to vision tokens in that layer.",
        "",
        "| before layer | attention | " + " | ".join(f"{rule} {100 * keep:g} %" for rule, keep in columns) + " |",
        "|---:|---:|" + "---:|" * len(columns),
    ]
    for layer in layers:
        seen = found["attention"][layer]
        cells = [entry(by_place.get((rule, keep, layer))) for rule, keep in columns]
        lines.append(f"| {layer} | {'–' if seen is None else f'{100 * seen:.1f} %'} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", advice(found), ""])


def entry(cut: dict[str, Any] | None) -> str:
    return "–" if cut is None or "accuracy" not in cut else f"{100 * cut['accuracy']:.1f} ({cut['divergence']:.3f})"


def advice(found: dict[str, Any]) -> str:
    """The schedule in words, and how to run the one of its cuts that saves most."""
    steps, depth = found["schedule"], found["depth"]
    if not steps:
        return f"No measured cut stays within {found['tolerance']:g} nats: keep all tokens, or give a larger tolerance."
    words = ", ".join(f"{100 * s['keep']:g} % from layer {s['layer']} on" for s in steps)
    share, layer = min(((s["layer"] + (depth - s["layer"]) * s["keep"]) / depth, s["layer"]) for s in steps)
    return (
        f"Suggested schedule (each cut alone costs at most {found['tolerance']:g} nats): {words}. "
        f"The one that saves most alone: `--methods fastv:layer={layer} --budgets {share:.4g}`."
    )


def draw(found: dict[str, Any], path: Path) -> None:
    """Two panels over the layers: divergence of each cut (log scale), and attention to vision tokens."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    cuts = sorted((c for c in found["cuts"].values() if "divergence" in c), key=lambda c: c["layer"])
    figure = Figure(figsize=(7.6, 6.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    cost, attention = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    for n, keep in enumerate(sorted({c["keep"] for c in cuts}, reverse=True)):
        for rule, style in STYLES.items():
            points = [(c["layer"], max(c["divergence"], LEAST)) for c in cuts if (c["rule"], c["keep"]) == (rule, keep)]
            if points:
                color = plots.COLORS[n % len(plots.COLORS)]
                cost.plot(*zip(*points, strict=True), label=f"{rule}, {100 * keep:g} % left", color=color, **style)
    cost.axhline(found["tolerance"], color="black", linewidth=0.8, linestyle=":")
    cost.annotate(f"tolerance {found['tolerance']:g}", (0, found["tolerance"]), (2, 3), textcoords="offset points")
    cost.set(yscale="log", ylabel="divergence of the next token (nats)")
    cost.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    seen = [(n, 100 * share) for n, share in enumerate(found["attention"]) if share is not None]
    attention.bar(*zip(*seen, strict=True), color="#777777", width=0.6)
    attention.set(xlabel="decoder layer (a cut is before it)", ylabel="attention to\nvision tokens (%)")
    attention.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in (cost, attention):
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, format="png")
