"""One sweep over the calibration for what structured passes ask of the whole decoder: a few numbers a channel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtc.errors import WeightsError
from vtc.weights.calibration.block_walk import Walk
from vtc.weights.calibration.token_weighting import by_gradient
from vtc.weights.structure.importance import unlikeness
from vtc.weights.structure.sites import Site

Buckets = str | tuple[float, float]  # of a recipe


@dataclass
class Channels:
    """What reaches a projection of D inputs, channel by channel: total and square ``[D]`` = (weighted) sums of x and
    x²; fluctuation ``[D]``: FLAP's running sum of (x - mean)², the mean over examples; count: tokens."""

    total: Tensor
    square: Tensor
    fluctuation: Tensor
    count: float = 0.0
    examples: int = 0

    @classmethod
    def empty(cls, width: int, device: torch.device | str = "cpu") -> Channels:
        return cls(*torch.zeros(3, width, device=device))

    @property
    def mean(self) -> Tensor:
        return self.total / max(self.count, 1e-12)

    def add(self, x: Tensor, weight: Tensor | None = None) -> Channels:
        """Count one example's rows ``x [T, D]``, each ``weight [T]`` times (None: once). As in FLAP's code, deviations
        are from the mean up to and with this example, and those of the first are left out."""
        x = x.detach().float()
        if not bool(torch.isfinite(x).all()):
            raise WeightsError(
                "a calibration example makes activations that are not finite; run the model in bfloat16 or float32, "
                "or leave that example out"
            )
        weight = torch.ones(len(x), device=x.device) if weight is None else weight.to(x.device)
        self.total += weight @ x
        self.square += weight @ x.square()
        self.count += float(weight.sum())
        self.examples += 1
        k = self.examples
        if k > 1:
            self.fluctuation *= (k - 2) / (k - 1)
            self.fluctuation += weight @ (x - self.mean).square() / k
        return self


def by_block(walk: Walk, buckets: Buckets) -> list[Buckets]:
    """What ``weights_of`` takes, for each decoder block: the recipe's own, but for "gradient", which has two weights a
    block."""
    return [*by_gradient(walk)] if buckets == "gradient" else [buckets] * walk.depth


def weights_of(label: Tensor, buckets: Buckets) -> Tensor:
    """``[T]``: how much each token of one example counts; ``label [T]``: 0 padding, 1 text, 2 vision."""
    seen, read = label == 2, label == 1
    if buckets == "pooled":
        return (seen | read).float()
    if not isinstance(buckets, str):
        return seen * float(buckets[0]) + read * float(buckets[1])
    vision, text = int(seen.sum()), int(read.sum())
    if not vision or not text:
        return (seen | read).float()
    return (seen / (2 * vision) + read / (2 * text)) * (vision + text)


@torch.no_grad()
def channels_of(walk: Walk, sites: list[Site], buckets: Buckets) -> list[Channels]:
    """What the reader of each site sees. Raises ``WeightsError`` for one that never runs."""
    ways = by_block(walk, buckets)
    found = [Channels.empty(s.linear(s.reader).in_features, s.linear(s.reader).weight.device) for s in sites]

    def capture(site: Site, seen: Channels, n: int) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            label = walk.labels(n, site.block).flatten()
            x = args[0].reshape(-1, args[0].shape[-1])
            if len(x) != len(label):
                raise WeightsError(
                    f"{site.name}.{site.reader} runs on {len(x)} rows where its decoder layer has {len(label)}; skip it"
                )
            seen.add(x, weights_of(label, ways[site.block]))

        return hook

    for n in range(len(walk.examples)):
        handles = [
            site.linear(site.reader).register_forward_pre_hook(capture(site, seen, n))
            for site, seen in zip(sites, found, strict=True)
        ]
        _run(walk, n, handles)
    for site, seen in zip(sites, found, strict=True):
        if not seen.count:
            raise WeightsError(f"{site.name}.{site.reader} did not run on any calibration example; skip it")
    return found


@torch.no_grad()
def influence_of(walk: Walk, buckets: Buckets) -> Tensor:
    """``[L]``: Block Influence of each decoder layer, of an unpatched model."""
    ways = by_block(walk, buckets)
    sums, counts = torch.zeros(2, walk.depth)

    def capture(index: int, weight: Tensor) -> Callable:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            sums[index] += (weight.to(after.device) @ unlikeness(before, after).flatten()).cpu()
            counts[index] += weight.sum()

        return hook

    for n in range(len(walk.examples)):
        weights = [weights_of(walk.rows(n).flatten(), way) for way in ways]
        layers = zip(walk.family.layers, weights, strict=True)
        hooks = [layer.register_forward_hook(capture(i, w), with_kwargs=True) for i, (layer, w) in enumerate(layers)]
        _run(walk, n, hooks)
    return sums / counts.clamp_min(1e-12)


def _run(walk: Walk, n: int, handles: list) -> None:
    try:
        walk.forward(n)
    finally:
        for handle in handles:
            handle.remove()
