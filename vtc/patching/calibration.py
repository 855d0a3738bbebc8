"""What a few example prompts tell of a model: where in its decoder the question decides (the layer and width of
``adaptive``'s second cut), in which layers vision tokens may rest, and how many tokens its pictures need."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vtc.budget.spend import POWER, Spend, settle
from vtc.engine.capture.tower import PIXELS
from vtc.errors import BudgetError
from vtc.methods.adaptive import Adaptive
from vtc.methods.divprune import DivPrune
from vtc.models import family_of
from vtc.patching.api import laid_aside, patched, report
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

    The choice is made for this budget: at others the second cut may cost more than it brings, so compare with
    ``layer=None`` there (docs/adaptive.md). A patch that is on stays on and has no part in it. Raises ``ValueError``
    without prompts, or where one is padded on the right.
    """
    from tqdm import tqdm

    prompts = list(prompts)
    if not prompts:
        raise ValueError("calibrate needs prompts with pictures; give a few dozen, as the processor makes them")
    family = family_of(model)
    depth = len(family.layers)
    if family.hybrid:
        return Adaptive(layer=None)
    with laid_aside(model), tqdm(desc="calibrating", unit="try", disable=not progress) as bar:
        tries = Tries(model, prompts, budget, bar)
        plain = Adaptive(layer=None)
        cuts = [Adaptive(layer=at, narrow=n) for at in (spread(depth) if layers is None else layers) for n in narrow]
        alone = min([plain, *cuts], key=tries.distance)
        best = with_rest(tries, [plain, *cuts], range(depth) if rest is None else rest, depth)
        return best if best is not None and tries.clearly_closer(best, alone) else alone


def with_rest(tries: Tries, cuts: list[Adaptive], layers: Iterable[int], depth: int) -> Adaptive | None:
    """The closest of ``cuts`` with some of ``layers`` resting; None where nothing can rest.

    Layers are ranked by what it costs to let all tokens rest in one of them. With the first quarter and the first half
    of that order (and one of it, and all) resting, the closest cut of middle width is found; then how many rest, and
    the width anew.
    """
    if depth < 2:
        return None
    whole = 1 - 1 / depth  # all tokens in all layers but one
    order = sorted(layers, key=lambda layer: tries.distance(Adaptive(layer=None, rest=(layer,)), whole))

    def resting(cut: Adaptive, counts: Iterable[int]) -> list[Adaptive]:
        free = [layer for layer in order if layer != cut.layer]
        return [replace(cut, rest=tuple(sorted(free[:n]))) for n in counts if 0 < n <= min(len(free), depth - 1)]

    widths = sorted({cut.narrow for cut in cuts if cut.layer is not None})
    middle = [cut for cut in cuts if cut.layer is None or cut.narrow == widths[len(widths) // 2]]
    some = [method for cut in middle for method in resting(cut, sorted({1, depth // 4, depth // 2, len(order)}))]
    if not some:
        return None
    best = min(some, key=tries.distance)
    best = min(resting(best, range(1, depth)), key=tries.distance)
    return min([best, *(replace(best, narrow=n) for n in widths if best.layer is not None)], key=tries.distance)


class Tries:
    """How far the answers to ``prompts`` move under a method, each tried once."""

    def __init__(self, model: nn.Module, prompts: list[dict[str, Any]], budget: int | float | Budget, bar: Any):
        self.model, self.prompts, self.budget, self.bar = model, prompts, budget, bar
        self.want = [next_token(model, prompt) for prompt in prompts]
        self.found: dict[tuple[Adaptive, Any], Tensor] = {}

    def divergences(self, method: Adaptive, budget: int | float | Budget | None = None) -> Tensor:
        """``[B]``, of each prompt; infinite where the first layers cost more than the budget (None: the one of all)."""
        budget = self.budget if budget is None else budget
        key = method, Budget.of(budget).value
        if key not in self.found:
            with patched(self.model, method, budget=budget):
                try:
                    pairs = [(want, next_token(self.model, x)) for want, x in zip(self.want, self.prompts, strict=True)]
                    self.found[key] = torch.cat([divergence(*pair) for pair in pairs])
                except BudgetError:
                    self.found[key] = torch.full((sum(map(len, self.want)),), math.inf)
            self.bar.update()
        return self.found[key]

    def distance(self, method: Adaptive, budget: int | float | Budget | None = None) -> float:
        """Their mean."""
        return float(self.divergences(method, budget).mean())

    def clearly_closer(self, one: Adaptive, other: Adaptive) -> bool:
        """By 1.645 standard errors over prompts, of 1 - exp(-divergence), which is bounded: a few prompts hold most of
        the divergence itself. As ``one`` is the best of many on these very prompts, that is a guard and no test."""
        gain = (-self.divergences(one)).exp() - (-self.divergences(other)).exp()
        return bool(gain.mean() > 1.645 * gain.std() / len(gain) ** 0.5)


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
    A patch that is on stays on and has no part in it. Raises ``ValueError`` where the prompts bring no picture.
    """
    from tqdm import tqdm

    limit = Budget.of(budget).value
    pictures = []
    whole = DivPrune(spend=Spend(budget=1.0, level=1.0, least=1.0))  # measures needs and drops nothing
    with laid_aside(model), patched(model, whole, budget=1.0):
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
