"""What the last prefill really did: tokens by picture and layer, KV bytes, FLOPs, milliseconds in selection."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vtc.methods._spelling import spell

if TYPE_CHECKING:
    from vtc.engine.state import LayerPlan, Prefill
    from vtc.methods.base import Method
    from vtc.models.base import Family
    from vtc.tokens import Budget


MAKING_KEYS = ("k_proj", "v_proj", "qkv_proj")  # what runs of a layer for keys and values alone


@dataclass
class Picture:
    """One picture of the last prefill.

    ``tokens_by_layer``: its vision tokens (newlines included) that are keys in each decoder layer, what the budget
    counts; ``rows_by_layer``: those that run there, as many but where a method reduces keys or tokens have stopped.
    ``grid`` (t, y, x) and ``slot`` of each scored token: ``slot[n]`` is the index of the token it was merged into (its
    own if kept, -1 if dropped; of methods that reduce keys, the last layer's). ``chosen``: of each layer, where each
    chooses its keys, the scored tokens that are; ``need``: in how many directions its tokens spread, where
    the method spends by need.
    """

    prompt: int
    tokens_in: int
    tokens_by_layer: list[int]
    grid: list[tuple[int, int, int]]
    slot: list[int]
    need: float | None = None
    rows_by_layer: list[int] = field(default_factory=list)
    chosen: list[list[int]] = field(default_factory=list)

    @property
    def average(self) -> float:
        """Keys averaged over the decoder layers."""
        return sum(self.tokens_by_layer) / len(self.tokens_by_layer)

    @property
    def average_rows(self) -> float:
        """Rows that run, averaged over the decoder layers."""
        return sum(self.rows_by_layer) / len(self.rows_by_layer)

    @property
    def layers_as_key(self) -> list[int]:
        """For each scored token, in how many layers it is a key, where each chooses."""
        count = Counter(n for layer in self.chosen for n in layer)
        return [count[n] for n in range(len(self.slot))]

    @property
    def returned(self) -> float:
        """Of the keys of all such layers but the first, the share that was none in the layer before."""
        new = sum(len(set(here) - set(before)) for before, here in pairwise(self.chosen))
        return new / max(sum(map(len, self.chosen[1:])), 1)


@dataclass
class Report:
    """``kv_bytes``: all keys and values in the real cache after the prefill (0 without a cache). ``flops``: the
    decoder's linear layers and causal attention for the shapes that ran (multiply-add = 2; all experts of a mixture
    counted). ``selection_ms``: choosing and merging tokens, signals included."""

    method: str
    budget: str
    pictures: list[Picture]
    rows_by_layer: list[int]
    kv_bytes: int
    flops: int
    selection_ms: float

    @property
    def average_tokens(self) -> float:
        """Layer-averaged vision tokens, mean over the pictures."""
        return sum(p.average for p in self.pictures) / max(len(self.pictures), 1)

    @property
    def average_rows(self) -> float:
        """Layer-averaged vision tokens that run, mean over the pictures."""
        return sum(p.average_rows for p in self.pictures) / max(len(self.pictures), 1)

    @property
    def spread(self) -> tuple[float, float, float]:
        """Least, mean and most layer-averaged vision tokens of a picture."""
        each = [p.average for p in self.pictures] or [0.0]
        return min(each), self.average_tokens, max(each)

    def __str__(self) -> str:
        lines = [
            f"{self.method} at {self.budget}: {self.average_tokens:.1f} vision tokens a picture, averaged over layers"
        ]
        if any(p.tokens_by_layer != p.rows_by_layer for p in self.pictures):
            lines[0] = (
                f"{self.method} at {self.budget}: {self.average_tokens:.1f} keys and {self.average_rows:.1f} rows a "
                "picture, averaged over layers"
            )
        if any(p.need is not None for p in self.pictures):
            low, _, high = self.spread
            lines[0] += f", by need from {low:.1f} to {high:.1f}"
        for i, p in enumerate(self.pictures):
            lines.append(f"  picture {i} (prompt {p.prompt}): {p.tokens_in} -> {_runs(p.tokens_by_layer)}")
            if p.chosen:
                lines[-1] += f"; {p.returned:.0%} of a layer's keys were none in the layer before"
        lines.append(
            f"  KV cache {self.kv_bytes:,} bytes, decoder prefill {self.flops / 1e9:.3f} GFLOPs, "
            f"selection {self.selection_ms:.2f} ms"
        )
        return "\n".join(lines)


def _runs(counts: list[int]) -> str:
    """``[36, 36, 9]`` as ``36 x 2, 9 x 1`` layers."""
    runs: list[list[int]] = []
    for n in counts:
        if runs and runs[-1][0] == n:
            runs[-1][1] += 1
        else:
            runs.append([n, 1])
    return ", ".join(f"{n} in {k} layers" if k > 1 else f"{n} in 1 layer" for n, k in runs)


def decoder_flops(
    layers: nn.ModuleList, rows: list[int], keys: list[int], past: list[int], batch: int, widths: list[int]
) -> int:
    """Multiply-adds x 2 of the decoder layers for ``rows[i]`` rows on ``keys[i]`` of their own and ``past[i]`` cached
    keys; ``widths``: heads x head_dim of each layer's attention."""
    total = 0
    for layer, n, own, old, width in zip(layers, rows, keys, past, widths, strict=True):
        linear = sum(m.weight.numel() for m in layer.modules() if isinstance(m, nn.Linear))
        linear += sum(p.numel() for name, p in layer.named_parameters() if p.dim() == 3 and "expert" in name)
        total += batch * (2 * linear * n + 4 * width * ((n + 1) * own // 2 + n * old))
    return total


def candidate_flops(family: Family, p: Prefill, first: int, width: int) -> int:
    """The same of candidates: their keys and values in every layer from ``first`` on, where they do not run, what those
    that go on see of them there, and the ranking in all."""
    total = 0
    for index, plan in p.plans.items():
        if plan.candidates is None:
            continue
        of = plan.candidates
        tokens, text, asking = of.place.rows.shape[1], of.text.rows.shape[1], of.asking.shape[1]
        if index >= first and p.going is not None:
            stopped, on = (one.rows.shape[1] for one in (p.going.stopped, p.going.vision))
            made = [m for name, m in family.decoder_attention(index).named_modules() if name in MAKING_KEYS]
            total += 2 * stopped * sum(m.weight.numel() for m in made if isinstance(m, nn.Linear))
            total += 2 * width * stopped * on
        if plan.chosen is not None:
            total += 2 * width * asking * (tokens + text + p.past_by_layer.get(index, 0))
    return p.batch * total


def compose(slots: list[Tensor], anchors: list[Tensor]) -> Tensor:
    """``[I, N]``: for each original token the original index of the token it ended in, -1 if dropped."""
    where = slots[0]
    anchor = anchors[0]
    for slot, chosen in zip(slots[1:], anchors[1:], strict=True):
        where = torch.where(where >= 0, slot.gather(1, where.clamp(min=0)), -1)
        anchor = anchor.gather(1, chosen.clamp(min=0))
    return torch.where(where >= 0, anchor.gather(1, where.clamp(min=0)), -1)


def summarise(
    p: Prefill, family: Family, method: Method, budget: Budget, stage_at: dict[int, int], kv_bytes: int
) -> Report:
    """The report of one forward, from what the engine noted."""
    from vtc.engine.state import Cut

    layout, depth = p.layout, len(family.layers)
    by_keys = {layer: plan.keys for layer, plan in sorted(p.plans.items()) if plan.keys is not None}
    routed = [plan.runs for _, plan in sorted(p.plans.items()) if isinstance(plan.runs, Cut)]
    cuts = p.cuts or [*by_keys.values(), *routed][-1:]  # of layers that each choose anew, the last
    spent = p.layer_budget.spent if by_keys or method.skips_layers and p.over else {}
    where = compose([c.reduction.slot for c in cuts], [c.reduction.anchor for c in cuts]).tolist() if cuts else None
    stops = next((at for at, n in stage_at.items() if method.stages()[n].freezes), depth)
    asks = stops < depth and p.over
    keyed = [as_keys(p, p.plans[layer]) for layer in range(depth if asks else 0)]
    grids = layout.grid.tolist()
    pictures = []
    for i, (count, newlines) in enumerate(zip(layout.count, layout.newlines, strict=True)):
        living = count + newlines
        by_layer = []
        for layer in range(depth):
            living = p.keeps[i][stage_at[layer]] if layer in stage_at and layer < stops else living
            living = spent[layer][i] if layer in spent else living
            by_layer.append(0 if p.over and layer in method.rest else living)
        running = [count + newlines] * depth if by_keys and p.over else by_layer
        scored = layout.row[i, :count].tolist()
        prompt = layout.prompts[i]
        own = {*scored, *layout.newline_row[i, :newlines].tolist()}
        chosen = [rows[prompt] & own for rows in keyed]
        if asks:
            on = 0 if p.going is None else p.going.keep[i]
            running = [min(n, on) if layer >= stops else n for layer, n in enumerate(by_layer)]
            by_layer = [len(rows) for rows in chosen]
            if prompt not in layout.prompts[i + 1 :]:  # the mean of the others stands at its prompt's last token
                by_layer = [
                    n + has_mean(plan, prompt) for n, (_, plan) in zip(by_layer, sorted(p.plans.items()), strict=True)
                ]
        slot = where[i][:count] if where else list(range(count))
        grid = [tuple(place) for place in grids[i][:count]]
        as_key = [[n for n, row in enumerate(scored) if row in rows] for rows in chosen]
        need = p.needs[i] if p.needs else None
        pictures.append(Picture(prompt, count + newlines, by_layer, grid, slot, need, running, as_key))
    rows = [p.rows_by_layer.get(i, 0) for i in range(depth)]
    keys = [by_keys[i].rows.shape[1] if i in by_keys else n for i, n in enumerate(rows)]
    past = [p.past_by_layer.get(i, 0) + (max(map(len, keyed[i])) if i >= stops else 0) for i in range(depth)]
    config = family.decoder.config
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    flops = decoder_flops(family.layers, rows, keys, past, p.batch, [width] * depth)
    flops += candidate_flops(family, p, stops, width)
    return Report(spell(method), str(budget), pictures, rows, kv_bytes, flops, p.clock.milliseconds())


def as_keys(p: Prefill, plan: LayerPlan) -> list[set[int]]:
    """For each prompt, the rows of the candidates that are keys in a layer."""
    if plan.candidates is None:
        return [set()] * p.batch
    rows, there = plan.candidates.place.rows, plan.candidates.place.valid
    if plan.chosen is not None:
        rows, there = rows.gather(1, plan.chosen.clamp(min=0)), plan.chosen >= 0
    listed = rows.tolist() if there is None else rows.masked_fill(~there, -1).tolist()
    return [{row for row in each if row >= 0} for each in listed]


def has_mean(plan: LayerPlan, prompt: int) -> bool:
    if plan.candidates is None or plan.chosen is None or plan.chosen.shape[1] == 0:
        return False
    return plan.candidates.with_mean[prompt]
