"""The registered methods and benchmarks as tables: what they are, and where they come from."""

from __future__ import annotations

from dataclasses import fields

from rich.table import Table
from rich.text import Text

from vtc.eval import benchmarks
from vtc.methods import registry
from vtc.methods._spelling import spell
from vtc.methods.base import Method, Stage
from vtc.signals.base import TowerHook
from vtc.signals.tower_groups import TowerGroups


def site(method: Method) -> str:
    """Where it cuts, in words."""
    if method.reduces_keys:
        return f"keys from layer {layer(method.stages()[0].layer)}"
    return ", ".join(map(place, method.stages()))


def place(stage: Stage) -> str:
    if stage.freezes:
        return f"keys in every layer, rows to {layer(stage.layer)}, then {layer(stage.running)} of them"
    return "decoder input" if stage.layer == 0 else f"layer {layer(stage.layer)}"


def layer(value: int | float) -> str:
    return f"{value}" if isinstance(value, int) else f"{100 * value:.3g} %"


def table() -> Table:
    """One row a method with its default options."""
    out = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("method", "cuts at", "signals", "trains", "share", "families"):
        out.add_column(title)
    for name, make in registry.items():
        method = make()
        seen = dict.fromkeys(s.words() for n in range(len(method.stages())) for s in method.signals(n))
        share = "yes" if any(s.layer == 0 for s in method.stages()) else "no"
        trains = "yes" if method.trains else "no"
        out.add_row(Text(name, "bold"), site(method), "\n".join(seen) or "-", trains, share, families(method))
    return out


def families(method: Method) -> str:
    """Which families it runs on; the others raise ``UnsupportedModel``."""
    stages = method.stages()
    seen = [signal for n in range(len(stages)) for signal in method.signals(n)]
    never = {
        "recurrent decoders (Qwen3.5)": method.reduces_keys or any(stage.layer != 0 for stage in stages),
        "towers that show no attention (Aria, GOT-OCR 2, Perception-LM)": any(
            isinstance(signal.hook(0), TowerHook) for signal in seen
        ),
        "learned queries (Aria)": method.gridded,
        "towers whose tokens cannot merge (Aria, GOT-OCR 2, Mistral 3, Ovis 2, Perception-LM, Pixtral)": any(
            isinstance(signal, TowerGroups) for signal in seen
        ),
    }
    missing = [words for words, applies in never.items() if applies]
    return "all but " + ", ".join(missing) if missing else "all"


def papers() -> Table:
    """Where each method comes from, its options and its documented variants."""
    out = Table(box=None, header_style="bold", pad_edge=False)
    out.add_column("method")
    out.add_column("from; options; variants")
    for name, make in registry.items():
        options = ", ".join(
            f"{f.name}={short(f.default)}" for f in fields(make) if f.name not in ("share", "spend", "rest")
        )
        out.add_row(Text(name, "bold"), "; ".join(filter(None, (make.paper, options, make.variants))))
    return out


def short(value: object) -> str:
    if isinstance(value, tuple) and value and all(isinstance(one, Method) for one in value):
        return "/".join(spell(one) for one in value)
    return f"{value:.4g}" if isinstance(value, float) else f"{value}"


def benchmark_table() -> str:
    """The registered benchmarks in Markdown: where their rows are, splits with answers, figures, longest answer."""
    rows = ["| benchmark | rows | configuration | splits | figures | new tokens |", "|---|---|---|---|---|---:|"]
    for name, kind in benchmarks.registry.items():
        source = " or ".join(f"`{hub}`" for hub in getattr(kind, "hub", ())) or "your own or built in"
        config = getattr(kind, "config", "") if getattr(kind, "hub", ()) else ""
        row = (f"`{name}`", source, config, ", ".join(kind.splits), kind.metric, str(kind.max_new_tokens))
        rows.append(f"| {' | '.join(row)} |")
    return "\n".join(rows)
