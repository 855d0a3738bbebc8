"""``vtc serve --families``: what vLLM serves of which family, in Markdown. Needs no vLLM."""

from __future__ import annotations

from vtc.integrations.vllm import ARCHITECTURES, BACKEND, NOT_SERVED, ONLY_OURS, SEES_THE_TOWER

OWN, THEIRS = "vLLM's own model", "transformers' code"


def families_table() -> str:
    """A row a family that ``vtc.patch`` knows; transformers' architectures without ``ForConditionalGeneration``."""
    lines = ["| family | methods that look at features | at the tower, too |", "|---|---|---|"]
    for name, file in sorted(ARCHITECTURES.items()):
        features = THEIRS if file == BACKEND else OWN
        lines.append(f"| {short(name)} | {features} | {at_the_tower(name)} |")
    for name, why in sorted(NOT_SERVED.items()):
        lines.append(f"| {short(name)} | no: {why} | no |")
    return "\n".join(lines)


def at_the_tower(name: str) -> str:
    if name in ONLY_OURS:
        return f"no: {ONLY_OURS[name]}"
    return OWN if name in SEES_THE_TOWER else THEIRS


def short(name: str) -> str:
    return name.removesuffix("ForConditionalGeneration")
