"""Passes over the structure of the decoder: they leave smaller plain linear layers, or fewer decoder layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from vtc.errors import WeightsError
from vtc.models import family_of
from vtc.patching.api import patch_of
from vtc.weights.calibration.block_walk import Example, Walk
from vtc.weights.calibration.channel_statistics import Buckets, Channels, channels_of, influence_of
from vtc.weights.passes.base import Candidate, Pass, check_flag, check_share
from vtc.weights.structure import importance
from vtc.weights.structure.edits import Edits
from vtc.weights.structure.sites import Site, shrink, sites

SCORES = ("wifv", "ifv", "wifn", "norm", "magnitude")


@dataclass(frozen=True)
class Scope:
    """What a structured pass may look at and touch: calibration ``examples``, how their tokens are weighed, and the
    recipe's ``skip``."""

    examples: Sequence[Example] = ()
    buckets: Buckets = "balanced"
    skip: tuple[str, ...] = ()


@dataclass(frozen=True)
class StructuredPass(Pass):
    """A pass over the whole decoder; in a recipe they stand before those that fit single layers."""

    def fit(self, layer: Candidate) -> Candidate:
        raise WeightsError(f"{self.name} changes the structure of the decoder and fits no single layer")

    def apply(self, model: nn.Module, scope: Scope, edits: Edits) -> dict[str, Any]:
        """Change ``model`` through ``edits``, which can undo it; what was done, as JSON holds it."""
        raise NotImplementedError


@dataclass(frozen=True)
class ChannelPass(StructuredPass):
    """Remove the ``share`` of units (neurons, heads with the keys they share) that matter least.

    score: what their channels are worth: "wifv", "ifv" or "wifn" (FLAP, 2312.11983; squared for attention, as its code
    does), "norm" (root of the summed squares of the activation; Minitron, 2407.14679, takes prompt means first) or
    "magnitude" (squared norm of the unit's weights; needs no calibration unless it compensates). A unit gets the mean
    of its channels.
    across: "layer" takes the share, rounded down, from each layer (FLAP's UL-UM); "model" sets one threshold on scores
    standardised by layer, weighing units by their parameters (AL-AM); "influence" takes more from decoder layers that
    change their states less, ``share * (1 - spread)`` to ``share * (1 + spread)``, ``share`` on average (after
    Adapt-Pruner, 2502.03460, which scales its sparsities another way). compensate: what lost channels gave on average
    goes into the bias of the projection that read them.
    """

    share: float = 0.2
    score: str = "wifv"
    across: str = "layer"
    compensate: bool = True
    spread: float = 0.5
    kinds: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_share("share", self.share)
        if self.score not in SCORES:
            raise WeightsError(f"score must be one of {', '.join(SCORES)}, not {self.score!r}")
        check_flag("compensate", self.compensate)
        if self.across not in ("layer", "model", "influence"):
            raise WeightsError(f'across must be "layer", "model" or "influence", not {self.across!r}')
        check_share("spread", self.spread)
        if self.across == "influence" and self.share * (1 + self.spread) >= 1:
            raise WeightsError(
                f"share={self.share} with spread={self.spread} takes all of a layer; the spread must be below "
                f"{1 / self.share - 1:.3g}"
            )

    @property
    def needs_gram(self) -> bool:  # type: ignore[override]
        return self.compensate or self.score != "magnitude" or self.across == "influence"

    def apply(self, model: nn.Module, scope: Scope, edits: Edits) -> dict[str, Any]:
        found = sites(model, family_of(model), self.kinds, scope.skip)
        seen = [Channels.empty(0)] * len(found)
        if self.needs_gram:
            seen = channels_of(Walk(model, scope.examples), found, scope.buckets)
        scores = [self.scores(site, at).cpu() for site, at in zip(found, seen, strict=True)]
        for site, score in zip(found, scores, strict=True):
            if not bool(score.isfinite().all()):
                raise WeightsError(f"{site.name} holds weights that are not finite; load the checkpoint again")
        kept = self.choose(scores, found, self.shares(model, scope, found))
        for site, at, keep in zip(found, seen, kept, strict=True):
            if not bool(keep.all()):
                shrink(site, keep, at.mean if self.compensate else None, edits)
        return {f"{site.name}.{site.kind}": [int(k.sum()), len(k)] for site, k in zip(found, kept, strict=True)}

    def scores(self, site: Site, seen: Channels) -> Tensor:
        """``[D]``: of the channels of one site."""
        weight = site.linear(site.reader).weight.detach().float()
        if self.score == "magnitude":
            makers = [site.linear(name).weight.detach().float() for name in site.makers]
            return importance.magnitude(weight, makers, site.width)
        if self.score == "norm":
            return seen.square.sqrt()
        if self.score == "wifn":
            found = importance.wifn(seen.square, seen.examples, weight)
        else:
            found = importance.wifv(seen.fluctuation, weight) if self.score == "wifv" else seen.fluctuation
        return found.square() if site.kind == "heads" else found

    def shares(self, model: nn.Module, scope: Scope, found: list[Site]) -> list[float]:
        """What each site loses, where each has a share of its own."""
        if self.across != "influence":
            return [self.share] * len(found)
        patch = patch_of(model)
        if patch is not None:
            patch.remove()
        try:
            influence = influence_of(Walk(model, scope.examples), scope.buckets)
        finally:
            if patch is not None:
                patch.install()
        return importance.shares_by(influence[[site.block for site in found]], self.share, self.spread)

    def choose(self, scores: list[Tensor], found: list[Site], shares: list[float]) -> list[Tensor]:
        """Which units of each site stay, bool ``[U]``. Raises ``WeightsError`` where all would."""
        if self.across == "model":
            scores = [importance.standardised(s) for s in scores]
        units = [importance.of_units(s, site.width) for s, site in zip(scores, found, strict=True)]
        if self.across == "model":
            kept = importance.best_of_all(units, [site.cost for site in found], self.share)
        else:
            kept = importance.best_of_each(units, shares)
        if all(bool(k.all()) for k in kept):
            most = max(map(len, kept))
            if most == 1:
                raise WeightsError("every layer has one group of heads only, which share their keys; prune neurons")
            raise WeightsError(
                f"share={self.share} removes nothing: the layers have {most} {' or '.join(self.kinds)} that can go at "
                f"most; the least share is {1 / most:.3g} (heads go with all that share their keys)"
            )
        return kept
