"""What a few example prompts tell of a model: where in its decoder vision tokens may stop and rest, of how many its
layers choose, and how many tokens its pictures need."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vtc.budget.spend import POWER, Spend, settle
from vtc.engine.capture.tower import PIXELS
from vtc.engine.stage_placement import can_freeze
from vtc.errors import BudgetError
from vtc.methods.adaptive import Adaptive
from vtc.methods.base import Stage
from vtc.methods.divprune import DivPrune
from vtc.models import family_of
from vtc.patching.api import laid_aside, patched, report
from vtc.tokens import Budget

LAYERS = (0.125, 0.25, 0.5)  # where tokens may stop, as fractions of depth
RUNNING = (0.0, 0.17, 0.33, 0.5)  # which part of them may go on
CANDIDATES = (2.0, 4.0, 6.0, 8.0)  # and how many times the budget may be candidates
ELSEWHERE = (0.5, 2.0, 4.0)  # times the budget, where a choice is looked at, too


@torch.no_grad()
def calibrate(
    model: nn.Module,
    prompts: Iterable[dict[str, Any]],
    budget: int | float | Budget = 0.03125,
    layers: Sequence[int | float] = LAYERS,
    candidates: Sequence[float] = CANDIDATES,
    running: Sequence[float] = RUNNING,
    rest: Sequence[int] | None = None,
    progress: bool = True,
) -> Adaptive:
    """The ``Adaptive`` whose answers at ``budget`` stay closest to the unpatched model's, to hand to ``vtc.patch``; the
    uncalibrated one, ``Adaptive()``, unless another is closer by more than chance.

    prompts: a few dozen prompts with pictures as the processor makes them (unpadded or padded on the left); no answers
    are needed. Closeness is the Kullback-Leibler divergence of the next token's distribution after the prompt. layers:
    where tokens may stop; candidates: how many times the budget may be kept of them; running: which part of those may
    go on; rest: decoder layers in which they may rest (default: all; none: ``()``).

    Every second prompt is searched on, the others decide whether what was found is closer than the uncalibrated one:
    on these it was not chosen. With ``progress`` what holds at other budgets is said on the terminal. A patch that is
    on stays on and has no part in it. Raises ``ValueError`` with less than two prompts, or where one is padded on the
    right.
    """
    from tqdm import tqdm

    prompts = list(prompts)
    if not prompts:
        raise ValueError("calibrate needs prompts with pictures; give a few dozen, as the processor makes them")
    family = family_of(model)
    if not can_freeze(family):
        return Adaptive(layer=None)
    depth = len(family.layers)
    with laid_aside(model), tqdm(desc="calibrating", unit="try", disable=not progress) as bar:
        tries = Tries(model, prompts, budget, bar)
        if len(tries) < 2:
            raise ValueError("calibrate searches on one half of the prompts and decides on the other; give two or more")
        rule = Adaptive()
        places = sorted({Stage(at).index(depth) for at in layers} - {0})
        stops = [at for at in places if family.deepstack <= at < depth]
        tried = [rule, Adaptive(layer=None)]  # the second: the first cut alone
        tried += (Adaptive(layer=at, candidates=n) for at in stops for n in candidates)
        found = closest(tries, tried, running, range(depth) if rest is None else rest, depth)
        chosen = found if tries.clearly_closer(found, rule) else rule
        if progress and chosen != rule:
            for line in elsewhere(tries, chosen, rule):
                bar.write(line)
    return chosen


def closest(tries: Tries, tried: list[Adaptive], running: Sequence[float], rest: Iterable[int], depth: int) -> Adaptive:
    """The closest on the prompts that are searched: first of ``tried``, whose first is the rule, then, with that, which
    part of the tokens goes on, then which layers they rest in.

    Layers are ranked by what it costs to let all tokens rest in one of them; the first of that order rest, one to three
    quarters of them.
    """
    best = min(tried, key=tries.distance)
    if best.layer is not None:
        best = min([best, *(replace(best, running=part) for part in running)], key=tries.distance)
    order = by_cost_of_rest(tries, tried[0], rest)
    counts = {n for n in (1, depth // 8, depth // 4, depth // 3, depth // 2, 3 * depth // 4) if 0 < n <= len(order)}
    resting = [replace(best, rest=tuple(sorted(order[:n]))) for n in sorted(counts - {depth})]
    return min([best, *resting], key=tries.distance)


def by_cost_of_rest(tries: Tries, rule: Adaptive, layers: Iterable[int]) -> list[int]:
    """The layers, the one first where it costs least that all tokens rest in it and none elsewhere."""
    return sorted(layers, key=lambda layer: tries.distance(replace(rule, rest=(layer,)), Budget(1.0)))


def elsewhere(tries: Tries, chosen: Adaptive, rule: Adaptive) -> Iterator[str]:
    """What ``chosen`` is at other budgets, in words."""
    for times in ELSEWHERE:
        other = tries.scaled(times)
        if tries.clearly_closer(chosen, rule, other):
            verdict = "closer than the uncalibrated one, too"
        elif tries.clearly_closer(rule, chosen, other):
            verdict = "farther than the uncalibrated one: calibrate there, or leave it"
        else:
            verdict = "no different from the uncalibrated one, as far as these prompts tell"
        yield f"at {other}: {verdict}"


class Tries:
    """How far the answers to ``prompts`` move under a method, each tried once. Every second one is for searching."""

    def __init__(self, model: nn.Module, prompts: list[dict[str, Any]], budget: int | float | Budget, bar: Any):
        self.model, self.prompts, self.budget, self.bar = model, prompts, Budget.of(budget), bar
        self.want = [next_token(model, prompt) for prompt in prompts]
        self.found: dict[tuple[Adaptive, Any], Tensor] = {}

    def __len__(self) -> int:
        return sum(map(len, self.want))

    def scaled(self, times: float) -> Budget:
        """That many times the budget, at most all tokens."""
        value = self.budget.value
        return Budget(min(1.0, value * times)) if isinstance(value, float) else Budget(max(1, round(value * times)))

    def divergences(self, method: Adaptive, budget: Budget | None = None) -> Tensor:
        """``[B]``, of each prompt; infinite where it cannot meet the budget (None: the one of all)."""
        budget = budget or self.budget
        key = method, budget.value
        if key not in self.found:
            with patched(self.model, method, budget=budget):
                try:
                    pairs = [(want, next_token(self.model, x)) for want, x in zip(self.want, self.prompts, strict=True)]
                    self.found[key] = torch.cat([divergence(*pair) for pair in pairs])
                except BudgetError:
                    self.found[key] = torch.full((len(self),), math.inf)
            self.bar.update()
        return self.found[key]

    def distance(self, method: Adaptive, budget: Budget | None = None) -> float:
        """Their mean on the prompts that are searched."""
        return float(self.divergences(method, budget)[::2].mean())

    def clearly_closer(self, one: Adaptive, other: Adaptive, budget: Budget | None = None) -> bool:
        """By 1.645 standard errors over the prompts that were not searched, of 1 - exp(-divergence), which is bounded:
        a few prompts hold most of the divergence itself."""
        near, far = (self.divergences(method, budget)[1::2] for method in (one, other))
        gain = (-near).exp() - (-far).exp()
        return bool(gain.mean() > 1.645 * gain.std(correction=len(gain) > 1) / len(gain) ** 0.5)


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


def next_token(model: nn.Module, prompt: dict[str, Any]) -> Tensor:
    """``[B, V]``: log-probabilities of the token after each prompt, in float32."""
    mask = prompt.get("attention_mask")
    if mask is not None and not bool(mask[:, -1].all()):
        raise ValueError('a prompt is padded on the right; pad on the left (processor.tokenizer.padding_side = "left")')
    return model(**prompt).logits[:, -1].float().log_softmax(dim=-1)


def divergence(want: Tensor, got: Tensor) -> Tensor:
    """``[B]``: Kullback-Leibler divergence of log-probabilities ``got [B, V]`` from ``want``, in nats."""
    return (want.exp() * (want - got)).sum(dim=-1)
