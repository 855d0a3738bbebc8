"""How much channels, heads and decoder layers matter, and which stay. Pure functions.

A channel is one input j of a projection ``weight [O, D]`` that is read by it: a neuron of an MLP, or one dimension of
an attention head. A unit is what comes and goes together: one neuron, or all channels of the heads that share keys.
FLAP is arXiv 2312.11983.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vtc.errors import WeightsError


def wifv(fluctuation: Tensor, weight: Tensor) -> Tensor:
    """``[D]``: weighted input feature variance: ``fluctuation [D]`` times the squared norms of the columns (FLAP)."""
    return fluctuation * weight.square().sum(0)


def wifn(square: Tensor, examples: int, weight: Tensor) -> Tensor:
    """``[D]``: weighted input feature norm: mean |column| times the norm of the input, from ``square [D]`` = sum of x²
    over ``examples`` (FLAP)."""
    return weight.abs().mean(0) * (square / max(examples, 1)).sqrt()


def magnitude(weight: Tensor, makers: Sequence[Tensor], width: int) -> Tensor:
    """``[D]``: squared norm of all weights of the channel's unit (``width`` channels): columns of ``weight [O, D]`` and
    the rows of the ``makers [D', I]`` that make it, shared out evenly."""
    units = weight.shape[1] // width
    squares = [w.square().sum(1).view(units, -1).sum(1) for w in (weight.T, *makers)]
    return (torch.stack(squares).sum(0) / width).repeat_interleave(width)


def standardised(scores: Tensor) -> Tensor:
    """Zero mean, unit deviation: what makes the scores of different layers comparable."""
    return (scores - scores.mean()) / scores.std().clamp_min(1e-12)


def of_units(scores: Tensor, width: int) -> Tensor:
    """``[U]``: the mean score of each unit of ``width`` channels."""
    return scores.view(-1, width).mean(1)


def best_of_each(scores: Sequence[Tensor], shares: Sequence[float]) -> list[Tensor]:
    """For each layer's ``scores [U]`` a bool ``[U]``: all but the worst of its ``shares``, rounded down; ties stay."""
    return [s >= s.sort().values[int(len(s) * share)] for s, share in zip(scores, shares, strict=True)]


def shares_by(influence: Tensor, share: float, spread: float) -> list[float]:
    """What each layer loses by its ``influence [L]``: the least one ``share * (1 + spread)`` at most, the one of the
    most ``share * (1 - spread)`` at least, linear between, ``share`` on average."""
    centred = (influence - influence.mean()).double()
    largest = float(centred.abs().max())
    weight = centred / largest if largest > 0 else centred
    return (share * (1 - spread * weight)).tolist()


def best_of_all(scores: Sequence[Tensor], costs: Sequence[float], share: float) -> list[Tensor]:
    """For each layer's ``scores [U]`` a bool ``[U]``: those above one threshold over all layers, where the units that
    stay hold nearest to ``1 - share`` of all cost; ``costs``: of one unit, by layer.

    Raises ``WeightsError`` where a layer would keep nothing, and names the largest share that leaves each some.
    """
    values, held = _descending(scores, costs)
    threshold = values[(held - held[-1] * (1 - share)).abs().argmin()]
    keep = [s > threshold for s in scores]
    if all(bool(k.any()) for k in keep):
        return keep
    bound = _largest_share(values, held, min(float(s.max()) for s in scores))
    remedy = f"prune at most {bound} of this model, or" if bound > 0 else "no share is small enough;"
    raise WeightsError(
        f"share={share} over all layers leaves one with nothing; {remedy} take it from each layer with across=layer"
    )


def _largest_share(values: Tensor, held: Tensor, limit: float) -> float:
    """The largest share, to three digits, whose threshold lies below ``limit``; 0 where there is none."""
    first = int((values >= limit).sum())
    if first == len(values):
        return 0.0
    between = (held[first - 1] + held[first]) / 2 / held[-1]  # from here on the nearer one is the first below
    return int((1 - float(between)) * 1000 - 1e-6) / 1000


def _descending(scores: Sequence[Tensor], costs: Sequence[float]) -> tuple[Tensor, Tensor]:
    """All scores, the largest first, and the cost of all up to each."""
    values = torch.cat(list(scores))
    spent = torch.cat([torch.full_like(s, cost) for s, cost in zip(scores, costs, strict=True)]).double()
    values, order = values.sort(descending=True)
    return values, spent[order].cumsum(0)


def unlikeness(before: Tensor, after: Tensor) -> Tensor:
    """``[T]``: 1 - cosine of states ``[T, D]`` before and after a decoder layer; its mean over tokens is the layer's
    Block Influence (ShortGPT, 2403.03853)."""
    return 1 - torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)
