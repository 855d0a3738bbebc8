"""What a few example prompts tell of a model: where in its decoder the question decides (the layer and width of
``adaptive``'s second cut), in which layers vision tokens may rest, and how many tokens its pictures need."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vtc.errors import BudgetError
from vtc.listener import PIXELS
from vtc.methods.adaptive import Adaptive
from vtc.methods.divprune import DivPrune
from vtc.models import family_of
from vtc.patching import patch_of, patched, report
from vtc.spend import POWER, Spend, settle
from vtc.tokens import Budget

NARROW = (0.5, 0.3, 0.15)


@torch.no_grad()
def calibrate(
    model: nn.Module,
    prompts: Iterable[dict[str, Any]],
    budget: int | float | Budget = 0.03125,
    layers: Sequence[int] | None = None,
    narrow: Sequence[float] = NARROW,
    rest: Sequence[int] | None = None,
    progress: bool = True,
) -> Adaptive:
    """The ``Adaptive`` whose answers at ``budget`` stay closest to the unpatched model's, to hand to ``vtc.patch``.

    prompts: a few dozen prompts with pictures as the processor makes them (unpadded or padded on the left); no answers
    are needed. Closeness is the Kullback-Leibler divergence of the next token's distribution after the prompt, mean
    over prompts. layers: candidates for the second cut (default: every layer of the first two thirds, at most 12 of
    them); narrow: candidates for its width; rest: layers in which tokens may rest (default: all). No second cut and no
    rest are candidates too.

    First the second cut is chosen. Then layers are ranked by how little it costs to let tokens rest in one of them, and
    the closest of the first one, two, three, ... of that order is taken; then the width anew. The budget should be the
    lowest that matters: what is right there is right above. Raises ``ValueError`` without prompts, where one is padded
    on the right, or when the model is patched already.
    """
    from tqdm import tqdm

    prompts = list(prompts)
    if not prompts:
        raise ValueError("calibrate needs prompts with pictures; give a few dozen, as the processor makes them")
    if patch_of(model) is not None:
        raise ValueError("this model is patched, and calibrate compares with the unpatched one; call vtc.unpatch first")
    family = family_of(model)
    depth = len(family.layers)
    want = [next_token(model, prompt) for prompt in prompts]
    found: dict[Adaptive, float] = {}  # divergence of what has been tried
    with tqdm(desc="calibrating", unit="try", disable=not progress) as bar:

        def distance(method: Adaptive) -> float:
            if method not in found:
                found[method] = _distance(model, method, budget, prompts, want)
                bar.update()
            return found[method]

        start = Adaptive(layer=None)
        if family.hybrid:
            return start
        layers = spread(depth) if layers is None else layers
        best = min([start, *(Adaptive(layer=at, narrow=n) for at in layers for n in narrow)], key=distance)
        can = [layer for layer in (range(depth) if rest is None else rest) if layer != best.layer]
        order = sorted(can, key=lambda layer: distance(replace(best, rest=(layer,))))
        resting = [replace(best, rest=tuple(sorted(order[:count]))) for count in range(1, len(order) + 1)]
        best = min([best, *resting[: depth - 1]], key=distance)  # in some layer they have to run
        return min([best, *(replace(best, narrow=n) for n in narrow if best.layer is not None)], key=distance)


def _distance(
    model: nn.Module, method: Adaptive, budget: int | float | Budget, prompts: list[dict[str, Any]], want: list[Tensor]
) -> float:
    """The mean divergence under ``method``; infinite where its first layers cost more than the budget."""
    with patched(model, method, budget=budget):
        try:
            got = [next_token(model, prompt) for prompt in prompts]
        except BudgetError:
            return math.inf
    return float(torch.cat([divergence(*pair) for pair in zip(want, got, strict=True)]).mean())


@torch.no_grad()
def calibrate_spend(
    model: nn.Module,
    prompts: Iterable[dict[str, Any]],
    budget: int | float | Budget,
    least: float = 0.5,
    most: float = 2.0,
    power: float = POWER,
    progress: bool = True,
) -> Spend:
    """How to spend ``budget`` by need, to hand to ``vtc.patch(model, method, budget, spend=...)`` with any method that
    cuts at the decoder's input.

    prompts: a few dozen prompts with pictures like those to come, as the processor makes them; their mean meets the
    budget and never exceeds it (``spread`` of what is returned: least, mean and most tokens). What the questions and
    the answers are does not matter. least, most: bounds of one picture, as shares of what the budget allows it;
    power in (0, 1]: a picture's tokens grow with its need to that power.
    Raises ``ValueError`` where the prompts bring no picture, or when the model is patched already.
    """
    from tqdm import tqdm

    if patch_of(model) is not None:
        raise ValueError("this model is patched, and calibrate_spend counts whole pictures; call vtc.unpatch first")
    limit = Budget.of(budget).value
    pictures = []
    whole = DivPrune(spend=Spend(budget=1.0, level=1.0, least=1.0))  # measures needs and drops nothing
    with patched(model, whole, budget=1.0):
        for prompt in tqdm(prompts, desc="calibrating", unit="prompt", disable=not progress):
            if any(prompt.get(name) is not None for name in PIXELS):
                model(**prompt)
                pictures += report(model).pictures
    if not pictures:
        raise ValueError("calibrate_spend needs prompts with pictures; give a few dozen, as the processor makes them")
    return settle([p.need or 0.0 for p in pictures], [p.tokens_in for p in pictures], limit, least, most, power)


def spread(depth: int, most: int = 12) -> list[int]:
    """Layers of the first two thirds of a decoder, evenly, at most ``most``."""
    last = max(1, 2 * depth // 3)
    return sorted({max(1, round(last * (n + 1) / min(most, last))) for n in range(min(most, last))})


def next_token(model: nn.Module, prompt: dict[str, Any]) -> Tensor:
    """``[B, V]``: log-probabilities of the token after each prompt, in float32."""
    mask = prompt.get("attention_mask")
    if mask is not None and not bool(mask[:, -1].all()):
        raise ValueError('a prompt is padded on the right; pad on the left (processor.tokenizer.padding_side = "left")')
    return model(**prompt).logits[:, -1].float().log_softmax(dim=-1)


def divergence(want: Tensor, got: Tensor) -> Tensor:
    """``[B]``: Kullback-Leibler divergence of log-probabilities ``got [B, V]`` from ``want``, in nats."""
    return (want.exp() * (want - got)).sum(dim=-1)
