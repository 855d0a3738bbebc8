"""ACT-IN-LLM, trained end to end: every layer learns which keys and values it needs, and how many."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from vtc.errors import VTCError
from vtc.methods import register
from vtc.methods._soft_top_k import soft_top_k
from vtc.methods.act import spread
from vtc.methods.base import Method, Stage
from vtc.signals.base import Signal
from vtc.signals.question_state import QuestionState
from vtc.signals.text_attention import TextAttention
from vtc.signals.token_states import TokenStates
from vtc.tokens import Reduction, VisionTokens

BY_HEAD, TOKENS, QUESTION = TextAttention("next", by_head=True), TokenStates(), QuestionState()


@register("act_learned")
@dataclass(frozen=True)
class ActLearned(Method):
    """``act`` whose ranking and budgets are learned, with the model's own loss. Untrained it is ``act``.

    In every decoder layer from ``layer`` on (an int, or a fraction of depth) a scorer of its own ranks the keys: what
    the prompt's last row attends to, head by head, each head with a learned weight, times the exponential of a scaled
    dot product of learned projections, to ``width`` channels, of the hidden states of token and last row. Layers share
    the budget by a learned weight, and by how spread their attention is, as in ``act``.

    Every forward is hard, in training too. The backward pass is straight-through: the gradient of key j's gate is that
    of the loss times the difference the key makes to the layer's attention (``vtc.gates.key_credit``), for keys that
    were left out as well, and flows into scores and budgets through a sigmoid around the threshold
    (``vtc.gates.soft_top_k``). With ``share`` a key left out still joins its nearest one, which the difference ignores.

    After ACT-IN-LLM (openreview 3Ofy2jNsNL). Departs from the paper: its ranking has no parameters and the model learns
    around it; see ``act``.
    """

    name: ClassVar[str] = "act_learned"
    paper: ClassVar[str] = "ACT-IN-LLM: Adaptively Compression Vision Tokens in LLM, openreview 3Ofy2jNsNL"
    reduces_keys: ClassVar[bool] = True
    learns: ClassVar[bool] = True

    layer: int | float = 0
    width: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.width, bool) or not isinstance(self.width, int) or self.width < 1:
            raise ValueError(f"act_learned: width={self.width!r} is not an int >= 1; give one, like 32")

    def build(self, model: nn.Module) -> nn.Module:
        config: Any = model.config
        text = config.get_text_config()
        layers = text.num_hidden_layers - Stage(self.layer).index(text.num_hidden_layers)
        if layers < 1:
            raise ValueError(
                f"act_learned: layer={self.layer} and the model has {text.num_hidden_layers}; give a lower one"
            )
        return Scorers(layers, text.num_attention_heads, text.hidden_size, self.width)

    def in_layer(self, layer: int) -> Self:
        out = copy.copy(self)
        object.__setattr__(out, "_layer", layer)
        return out

    def _learned(self) -> Scorers:
        if not isinstance(self.module, Scorers):
            raise VTCError(
                "act_learned has no parameters without a model; use it through vtc.patch(model, 'act_learned')"
            )
        return self.module

    def stages(self) -> tuple[Stage, ...]:
        return (Stage(self.layer),)

    def signals(self, stage: int) -> tuple[Signal, ...]:
        return (BY_HEAD, TOKENS, QUESTION)

    def weights(self, layers: int) -> list[float]:
        return self._learned().budgets.detach().float().exp().tolist()

    def need(self, tokens: VisionTokens, signals: dict[Signal, Tensor]) -> Tensor:
        return spread(signals[BY_HEAD].mean(dim=2).masked_fill(~tokens.valid, 0.0))

    def _scores(self, tokens: VisionTokens, signals: dict[Signal, Tensor]) -> tuple[Tensor, Tensor]:
        scorer = self._learned().layers[self.__dict__.get("_layer", 0)]
        return scorer(signals[BY_HEAD], signals[TOKENS], signals[QUESTION], tokens.valid)

    @torch.no_grad()
    def reduce(self, stage: int, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Reduction:
        seen, match = self._scores(tokens, signals)
        return Reduction.top(seen * match.exp(), keep, tokens)

    def gates(self, tokens: VisionTokens, signals: dict[Signal, Tensor], keep: list[int]) -> Tensor:
        seen, match = self._scores(tokens, signals)
        score = seen.clamp_min(torch.finfo(seen.dtype).tiny).log() + match
        budgets = self._learned().budgets.to(score.dtype)
        share = (budgets[self.__dict__.get("_layer", 0)] - budgets.logsumexp(dim=0)).exp()
        kept = torch.tensor(keep, device=score.device) * (share / share.detach())
        return soft_top_k(score, kept, tokens.valid)


class Scorers(nn.Module):
    """A scorer for each of ``layers`` layers, and the logs of their shares of the budget."""

    def __init__(self, layers: int, heads: int, channels: int, width: int):
        super().__init__()
        self.layers = nn.ModuleList(Scorer(heads, channels, width) for _ in range(layers))
        self.budgets = nn.Parameter(torch.zeros(layers))


class Scorer(nn.Module):
    """What one layer makes of attention and of hidden states of ``channels``; at the start the mean of the heads."""

    def __init__(self, heads: int, channels: int, width: int):
        super().__init__()
        self.heads = nn.Parameter(torch.zeros(heads))
        self.read_token = nn.Sequential(nn.LayerNorm(channels, bias=False), nn.Linear(channels, width, bias=False))
        ask = nn.Linear(channels, width)
        nn.init.zeros_(ask.weight)
        nn.init.zeros_(ask.bias)
        self.read_question = nn.Sequential(nn.LayerNorm(channels), ask)

    def forward(self, attention: Tensor, tokens: Tensor, question: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """``[I, N]`` each: attention, its heads weighed, and how well the token answers the question, a log.

        attention ``[I, N, H]``, tokens ``[I, N, D]``, question ``[I, D]``, valid ``[I, N]``.
        """
        dtype = self.heads.dtype
        attention = attention.masked_fill(~valid[..., None], 0.0)  # a NaN there would reach the heads' gradient
        seen = (attention * self.heads.to(attention.dtype).exp()).mean(dim=2)
        own = self.read_token(tokens.masked_fill(~valid[..., None], 0.0).to(dtype))
        asked = self.read_question(question.to(dtype))
        match = (own @ asked[..., None])[..., 0] * own.shape[2] ** -0.5
        return seen, match.to(seen.dtype)
