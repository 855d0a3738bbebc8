"""Which passes each layer should get for a size: candidates fitted one layer at a time, then allocated.

The damage of a candidate is what its errors do to the next token on other prompts (Kullback-Leibler divergence, nats),
as the gradients foresee it (``vtc.weights.sensitivity``). It is not measured: on a few dozen prompts the divergence of
one candidate hangs on two or three of them, and an allocation picks what those happened not to show.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vtc.errors import WeightsError
from vtc.models import family_of
from vtc.patching.calibration import divergence
from vtc.weights.calibration.block_walk import Example, Walk
from vtc.weights.calibration.sensitivity import doubtful, sensitivities
from vtc.weights.calibration.token_weighting import weigher
from vtc.weights.pipeline import fitted, in_order, standing_in
from vtc.weights.planning.allocate import SECONDS, solve
from vtc.weights.recipe import Recipe, chain
from vtc.weights.select import layers_of

CANDIDATES = tuple(f"gptq:bits={bits}" for bits in (2, 3, 4, 5, 6, 8))
COSTS = ("bytes", "flops", "ms")
ROWS = 64  # of the inputs that a layer is timed with


@dataclass(frozen=True)
class Trial:
    """One candidate for one layer. weights: how many; bytes stored; flops of a token; ms of 64 rows (None: not timed);
    error: relative output error; divergence: foreseen, in nats."""

    layer: str
    passes: str
    weights: int
    bytes: int
    flops: int
    error: float
    divergence: float
    ms: float | None = None


def trials(
    model: nn.Module,
    calibration: Iterable[Example],
    heldout: Iterable[Example],
    candidates: Sequence[str] = CANDIDATES,
    recipe: Any = "int4",
    timed: bool = False,
    progress: bool = True,
) -> list[Trial]:
    """Every candidate on every layer that ``recipe`` includes (its passes are not used). The model is left as it was.

    calibration, heldout: prompts with pictures, as the processor makes them, none in both. Few dozen are enough to fit
    candidates; what they cost is said by the prompts on which the model is in doubt, so ``heldout`` should be hundreds.
    """
    from tqdm import tqdm

    recipe = planned(recipe)
    chains = {text: chain(text) for text in candidates}
    if len(chains) < 2:
        raise WeightsError("give at least two candidates to choose from, like gptq:bits=4 and gptq:bits=3")
    family = family_of(model)
    layers = layers_of(model, family, recipe.include, recipe.skip)
    walk, other, prompts = Walk(model, calibration), *doubtful(Walk(model, heldout))
    weigh = weigher(recipe.buckets, walk)
    found: list[Trial] = []
    with tqdm(total=len(layers), desc="trying", unit="layer", disable=not progress) as bar:
        for block, inside in in_order(model, family, layers):
            seen, felt = (walk.see(block, inside), sensitivities(other, inside)) if inside else ({}, {})
            for name, layer in inside.items():
                gram = weigh(block, seen[name])
                for text, passes in chains.items():
                    fit = fitted(name, layer, gram, passes)
                    damage = felt[name].divergence(fit.rest) / prompts
                    ms = time_of(standing_in(layer, fit), layer) if timed else None
                    found.append(Trial(name, text, layer.weight.numel(), fit.bytes, fit.flops, fit.error, damage, ms))
                bar.update()
            if isinstance(block, int):
                walk.step(block)
                other.step(block)
    return found


def planned(given: Any) -> Recipe:
    """The recipe whose layers are planned. Raises ``WeightsError`` for one that makes them smaller: nothing that was
    tried would hold."""
    recipe = Recipe.of(given)
    if recipe.structured:
        name = recipe.structured[0].name
        raise WeightsError(f"{name} changes the layers that are planned; prune first, and plan for what is left")
    return recipe


class Probe:
    """Held-out prompts and what the model says next on them."""

    def __init__(self, model: nn.Module, heldout: Iterable[Example]):
        self.heldout = list(heldout)
        self.want = self.says(model)

    def says(self, model: nn.Module) -> list[Tensor]:
        """``[B, V]`` of each batch: log-probabilities of the next token, float32."""
        return [logits.float().log_softmax(dim=-1) for logits in Walk(model, self.heldout).next_logits()]

    def each(self, model: nn.Module) -> Tensor:
        """``[N]``: the divergence of the next token after each prompt from what the first model said, in nats."""
        return torch.cat([divergence(*pair) for pair in zip(self.want, self.says(model), strict=True)])

    def divergence(self, model: nn.Module) -> float:
        """Its mean."""
        return float(self.each(model).mean())


@torch.no_grad()
def time_of(module: nn.Module, layer: Any, repeats: int = 9) -> float:
    """Median milliseconds of ``module`` on 64 rows of inputs."""
    from time import perf_counter

    x = torch.randn(ROWS, layer.in_features, dtype=layer.weight.dtype, device=layer.weight.device)
    taken = []
    for _ in range(repeats + 2):
        _wait(x)
        started = perf_counter()
        module(x)
        _wait(x)
        taken.append(1000 * (perf_counter() - started))
    return float(np.median(taken[2:]))


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


@dataclass(frozen=True)
class Plan:
    """What each layer gets, by ``limit`` of ``cost``. damage: divergences of the chosen, added up (nats)."""

    chosen: dict[str, str]
    trials: tuple[Trial, ...]
    cost: str
    limit: float

    @property
    def picked(self) -> list[Trial]:
        return [t for t in self.trials if self.chosen[t.layer] == t.passes]

    @property
    def bytes(self) -> int:
        return sum(t.bytes for t in self.picked)

    @property
    def bits(self) -> float:
        return 8 * self.bytes / sum(t.weights for t in self.picked)

    @property
    def damage(self) -> float:
        return sum(t.divergence for t in self.picked)

    def recipe(self, like: Any = "int4") -> Recipe:
        """To hand to ``vtc.compress``; buckets, parts and skipped layers as in ``like``. Others stay as they are."""
        base = planned(like)
        by_layer = tuple((name, chain(text)) for name, text in self.chosen.items())
        return Recipe((), base.include, base.skip, base.buckets, by_layer)

    def written(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "cost": self.cost,
            "limit": self.limit,
            "bits": self.bits,
            "bytes": self.bytes,
            "damage": self.damage,
            "chosen": self.chosen,
            "trials": [asdict(t) for t in self.trials],
        }


def allocate(
    trials: Sequence[Trial],
    bits: float | None = None,
    limit: float | None = None,
    cost: str = "bytes",
    by: str = "divergence",
    seconds: float = SECONDS,
) -> Plan:
    """The candidates with the least total damage that keep to ``bits`` a weight on average, or to ``limit`` in all of
    ``cost`` ("bytes" stored, "flops" of a token, "ms"). by: "divergence" as foreseen, or "error" (the layer's relative
    output error, which says less). Raises ``WeightsError`` where nothing is small enough."""
    if cost not in COSTS or by not in ("divergence", "error"):
        raise WeightsError(f'cost is one of {", ".join(COSTS)} and by "divergence" or "error", not {cost!r} and {by!r}')
    if (bits is None) == (limit is None) or (bits is not None and cost != "bytes"):
        raise WeightsError("give either bits (a weight, on average) or limit (in all, of the cost)")
    layers, texts = list(dict.fromkeys(t.layer for t in trials)), list(dict.fromkeys(t.passes for t in trials))
    damage, price = np.full((2, len(layers), len(texts)), np.inf)
    weights = {t.layer: t.weights for t in trials}
    for t in trials:
        at = layers.index(t.layer), texts.index(t.passes)
        price[at] = np.inf if getattr(t, cost) is None else getattr(t, cost)
        damage[at] = getattr(t, by)
    limit = bits * sum(weights.values()) / 8 if bits is not None else float(limit)  # type: ignore[arg-type]
    choice = solve(damage, price, limit, seconds)
    return Plan({layer: texts[c] for layer, c in zip(layers, choice, strict=True)}, tuple(trials), cost, limit)
