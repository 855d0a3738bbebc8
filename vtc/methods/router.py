"""FTP's token router: in each decoder layer the vision tokens that matter least skip that layer alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from vtc.errors import VTCError
from vtc.methods import register
from vtc.methods._soft_top_k import soft_top_k
from vtc.methods.base import Method, Stage
from vtc.signals.base import Signal
from vtc.signals.text_attention import TextAttention
from vtc.tokens import Reduction, VisionTokens

SEEN = TextAttention("next")
FEATURES, HIDDEN = 4, 16


@register("router")
@dataclass(frozen=True)
class Router(Method):
    """In every decoder layer from ``layer`` on (an int, or a fraction of depth) a small router of its own ranks the
    vision tokens; those that rank last skip the layer: they pass through unchanged, are no keys in it, and are back in
    the next. Untrained it ranks by what the prompt's last row attends to in this layer, for which the layer's queries
    and keys are computed of all rows.

    A router sees of each token four numbers: its position, that attention (log), its rank by it, and the share of
    tokens that runs in the layer; what it adds to the log attention is learned. ``schedule``: the relative number of
    tokens that each of those layers runs, as ``vtc.training.schedule.search`` finds it (empty: the same in all).

    Every forward is hard; gradients reach a router through the tokens that ran and a sigmoid around the threshold
    (``vtc.gates.soft_top_k``). Losses that guide it: ``vtc.training.router_losses``.

    FTP: A Fine-grained Token-wise Pruner for Large Language Models via Token Routing, arXiv 2412.11494. Departs from
    the paper: only vision tokens are routed; a budget fixes how many run, so sparsity cannot drift from its schedule.
    """

    name: ClassVar[str] = "router"
    paper: ClassVar[str] = "FTP: A Fine-grained Token-wise Pruner for LLMs via Token Routing, arXiv 2412.11494"
    learns: ClassVar[bool] = True
    skips_layers: ClassVar[bool] = True

    layer: int | float = 1
    schedule: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share:
            raise ValueError("router: share=True would merge tokens that are back in the next layer; leave it out")
        given = self.schedule
        numbers = isinstance(given, (tuple, list)) and all(isinstance(n, (int, float)) and 0 < n < 1e9 for n in given)
        if not numbers:
            raise ValueError(
                f"router: schedule={given!r} are not numbers above 0, one a layer; search for them or give ()"
            )
        object.__setattr__(self, "schedule", tuple(float(n) for n in given))

    def build(self, model: nn.Module) -> nn.Module:
        config: Any = model.config
        depth = config.get_text_config().num_hidden_layers
        layers = depth - Stage(self.layer).index(depth)
        if layers < 1:
            raise ValueError(f"router: layer={self.layer} and the model has {depth}; give a lower one")
        if self.schedule and len(self.schedule) != layers:
            raise ValueError(
                f"router: schedule has {len(self.schedule)} entries and {layers} layers route; give one each"
            )
        return nn.ModuleList(_small() for _ in range(layers))

    def in_layer(self, layer: int) -> Self:
        out = copy.copy(self)
        object.__setattr__(out, "_layer", layer)
        return out

    def stages(self) -> tuple[Stage, ...]:
        return (Stage(self.layer),)

    def signals(self, stage: int) -> tuple[Signal, ...]:
        return (SEEN,)

    def weights(self, layers: int) -> list[float]:
        return list(self.schedule) or [1.0] * layers

    def scores(self, tokens: VisionTokens, attention: Tensor, keep: list[int]) -> Tensor:
        """``[I, N]``: how much each token should run, a log."""
        if not isinstance(self.module, nn.ModuleList):
            raise VTCError("router has no parameters without a model; use it through vtc.patch(model, 'router')")
        router = self.module[self.__dict__.get("_layer", 0)]
        seen = attention.clamp_min(torch.finfo(attention.dtype).tiny).log()
        weight = next(router.parameters())
        return seen + router(features(seen, tokens, keep).to(weight.dtype))[..., 0].to(seen.dtype)

    @torch.no_grad()
    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        return Reduction.top(self.scores(tokens, signals[SEEN], keep), keep, tokens)

    def gates(self, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Tensor:
        score = self.scores(tokens, signals[SEEN], keep)
        return soft_top_k(score, torch.tensor(keep, device=score.device).to(score.dtype), tokens.valid)


def features(seen: Tensor, tokens: VisionTokens, keep: list[int]) -> Tensor:
    """``[I, N, 4]``: position in the picture, log attention less its mean, rank (both 0 to 1), and the share that
    runs. ``seen [I, N]``: log attention."""
    seen = seen.where(seen.isfinite(), -100.0)  # one NaN spoils no other
    count = torch.tensor(tokens.count, device=seen.device).clamp(min=1)[:, None].to(seen.dtype)
    position = torch.arange(seen.shape[1], device=seen.device) / count
    order = seen.masked_fill(~tokens.valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1) / count
    mean = seen.masked_fill(~tokens.valid, 0.0).sum(dim=1, keepdim=True) / count
    share = torch.tensor(keep, device=seen.device).to(seen.dtype)[:, None] / count
    found = torch.stack(torch.broadcast_tensors(position, seen - mean, rank, share), dim=2)
    return found.masked_fill(~tokens.valid[..., None], 0.0)


def _small() -> nn.Module:
    """Four features to a number; at the start 0."""
    last = nn.Linear(HIDDEN, 1, bias=False)
    nn.init.zeros_(last.weight)
    return nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.GELU(), last)
