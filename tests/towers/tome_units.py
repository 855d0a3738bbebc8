"""ToMe on units of patches inside a tower, one unit at a time: what ``vtc/towers/units.py`` must equal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tests.towers.tome import round_by_loop


class Tile:
    """InternVL's layers and Idefics3's, as q, k, v ``[n, H, d]`` of rows, what follows attention, and the MLP."""

    def qkv(self, layer, x: Tensor, rows: list[int]) -> list[Tensor]:
        attention = layer.attention if hasattr(layer, "attention") else layer.self_attn
        x = (layer.layernorm_before if hasattr(layer, "attention") else layer.layer_norm1)(x)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        return [p(x).unflatten(1, (attention.num_heads, -1)) for p in projections]

    def attended(self, layer, x: Tensor, out: Tensor) -> Tensor:
        if hasattr(layer, "attention"):
            return x + layer.lambda_1 * layer.attention.projection_layer(out)
        return x + layer.self_attn.out_proj(out)

    def fed(self, layer, x: Tensor) -> Tensor:
        if hasattr(layer, "attention"):
            return x + layer.lambda_2 * layer.mlp(layer.layernorm_after(x))
        return x + layer.mlp(layer.layer_norm2(x))


@dataclass
class Sequence(Tile):
    """Qwen-VL's; cos and sin ``[N, d]`` of every patch."""

    cos: Tensor
    sin: Tensor

    def qkv(self, layer, x: Tensor, rows: list[int]) -> list[Tensor]:
        q, k, v = layer.attn.qkv(layer.norm1(x)).unflatten(1, (3, layer.attn.num_heads, -1)).unbind(1)
        return [self.turned(q, rows), self.turned(k, rows), v]

    def turned(self, x: Tensor, rows: list[int]) -> Tensor:
        first, second = x.float().chunk(2, dim=-1)
        cos, sin = self.cos[rows][:, None].float(), self.sin[rows][:, None].float()
        return (x.float() * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)

    def attended(self, layer, x: Tensor, out: Tensor) -> Tensor:
        return x + layer.attn.proj(out)

    def fed(self, layer, x: Tensor) -> Tensor:
        return x + layer.mlp(layer.norm2(x))


@torch.no_grad()
def tower_by_definition(
    kind: Tile,
    layers,
    states: Tensor,
    units: list[list[int]],
    parts: list[list[int]],
    seen: list[list[list[int]]],
    rates: list[list[int]],
    prefix: int,
) -> Tensor:
    """What the last layer leaves ``[n, D]`` of the embeddings ``states [n, D]``, every patch with its group's value.

    units: rows of each unit; parts: units that may merge with each other; seen: for each layer the parts that attend to
    each other; rates: for each layer how many merge away in each part.
    """
    groups = [[[u] for u in part] for part in parts]
    values = [[states[units[u]] for u in part] for part in parts]
    for layer, chunks, away in zip(layers, seen, rates, strict=True):
        keys: list[list[Tensor]] = [[] for _ in parts]
        for chunk in chunks:
            here = [(p, g) for p in chunk for g in range(len(groups[p]))]
            x = torch.cat([values[p][g] for p, g in here])
            q, k, v = kind.qkv(layer, x, [row for p, g in here for row in units[groups[p][g][0]]])
            sizes = torch.tensor([float(len(groups[p][g])) for p, g in here for _ in values[p][g]], dtype=x.dtype)
            weights = (torch.einsum("ahd,bhd->hab", q, k) * q.shape[-1] ** -0.5 + sizes.log()).softmax(dim=-1)
            x = kind.attended(layer, x, torch.einsum("hab,bhd->ahd", weights, v).flatten(1))
            lengths = [len(values[p][g]) for p, g in here]
            for (p, g), value, key in zip(here, x.split(lengths), k.mean(dim=1).split(lengths), strict=True):
                values[p][g] = value
                keys[p].append(key)
        for p, r in enumerate(away):
            values[p], groups[p] = one_round(values[p], keys[p], groups[p], r, prefix)
            values[p] = [kind.fed(layer, value) for value in values[p]]
    full = states.clone()
    for part, members in zip(values, groups, strict=True):
        for value, group in zip(part, members, strict=True):
            for u in group:
                full[units[u]] = value
    return full


def one_round(
    values: list[Tensor], keys: list[Tensor], groups: list[list[int]], r: int, prefix: int
) -> tuple[list[Tensor], list[list[int]]]:
    """Patches side by side; a class token alone, filled with zeros."""
    widest, width = max(v.numel() for v in values), values[0].shape[1]
    flat = torch.stack([torch.nn.functional.pad(v.flatten(), (0, widest - v.numel())) for v in values])
    longest = max(k.numel() for k in keys)
    metric = torch.stack([torch.nn.functional.pad(k.flatten(), (0, longest - k.numel())) for k in keys])
    flat, groups = round_by_loop(flat, metric, groups, r, prefix)
    rows = [1] * prefix + [widest // width] * (len(flat) - prefix)
    return [one.view(-1, width)[:n] for one, n in zip(flat, rows, strict=True)], groups
