"""Made-up pictures for tests: vision tokens and signals whose values depend on the picture, never on the batch."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from vtc.engine.stages import slot_values
from vtc.methods._contract import check_reduction
from vtc.methods.base import Method
from vtc.signals.base import Signal
from vtc.signals.question_state import QuestionState
from vtc.signals.rater_attention import RaterAttention
from vtc.signals.text_attention import TextAttention
from vtc.signals.text_pivots import TextPivots
from vtc.signals.token_states import TokenStates
from vtc.signals.tower_groups import TowerGroups
from vtc.signals.tower_keys import TowerKeys
from vtc.tokens import Reduction, VisionTokens

WIDTH = 8
HEADS = 6


def plain(features: Tensor) -> VisionTokens:
    """Tokens of ``features [I, N, D]``, all valid, every picture one row of its grid."""
    pictures, n, _ = features.shape
    index = torch.arange(n).repeat(pictures, 1)
    return VisionTokens(
        features=features,
        valid=torch.ones(pictures, n, dtype=torch.bool),
        size=torch.ones(pictures, n),
        grid=torch.stack([torch.zeros_like(index), torch.zeros_like(index), index], dim=2),
        row=index,
        prompt=torch.arange(pictures),
        count=[n] * pictures,
    )


def picture(shape: tuple[int, int, int], seed: int, dtype: torch.dtype = torch.float32) -> VisionTokens:
    """One picture of ``shape`` (t, y, x) tokens with features drawn from ``seed``."""
    grid = torch.cartesian_prod(*(torch.arange(s) for s in shape))[None]
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(1, grid.shape[1], WIDTH, generator=generator, dtype=torch.float64)
    return replace(plain(features.to(dtype)), grid=grid)


def video(features: Tensor) -> VisionTokens:
    """One video of ``features [F, n, D]``: F frames of one row each."""
    tokens = picture((features.shape[0], 1, features.shape[1]), 0)
    return replace(tokens, features=features.flatten(0, 1)[None])


def batch(pictures: list[VisionTokens], pad: int = 0) -> VisionTokens:
    """The pictures in one batch, padded by ``pad`` more than needed; the padding's features are NaN."""
    wide = max(p.count[0] for p in pictures) + pad

    def stack(name: str, fill: float) -> Tensor:
        rows = [getattr(p, name)[0] for p in pictures]
        return torch.stack([torch.cat([r, r.new_full((wide - len(r), *r.shape[1:]), fill)]) for r in rows])

    return VisionTokens(
        features=stack("features", torch.nan),
        valid=stack("valid", False),
        size=stack("size", 0),
        grid=stack("grid", -1),
        row=stack("row", -1),
        prompt=torch.arange(len(pictures)),
        count=[p.count[0] for p in pictures],
    )


def without_grid(tokens: VisionTokens) -> VisionTokens:
    return replace(tokens, grid=torch.full_like(tokens.grid, -1))


def signals(method: Method, tokens: VisionTokens, stage: int = 0) -> dict[Signal, Tensor]:
    """Made-up signals, a fixed function of the features: one value a token, ``[I, N, 6]`` for tower keys and what is by
    head, four states a picture for text pivots, a vector for the question's state."""
    mix = torch.linspace(-1, 1, WIDTH * HEADS, dtype=torch.float64).sin().view(WIDTH, HEADS).to(tokens.features.dtype)
    vectors = (tokens.features[..., None] * mix).sum(2)  # elementwise: the same bits in every batch
    pivots = tokens.features[:, :1] * mix.T[:4]
    groups = vectors[..., 0].round()
    made = {TowerKeys: vectors, TowerGroups: groups, RaterAttention: vectors.exp(), TextPivots: pivots}
    question = mix[None, :, 0].expand(len(tokens.row), -1)
    made |= {TextAttention: vectors.exp(), TokenStates: tokens.features, QuestionState: question}

    def signal(s: Signal) -> Tensor:
        if isinstance(s, TextAttention) and not s.by_head:
            return vectors[..., 0].exp()
        return made.get(type(s), vectors[..., 0].exp())

    return {s: signal(s) for s in method.signals(stage)}


def ready(method: Method) -> Method:
    """The method as a patch on a model of ``WIDTH`` channels holds it: with its learned part, where it has one."""
    model = nn.Module()
    model.config = PretrainedConfig(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS)
    return method.bound(method.build(model))


def reduce(method: Method, tokens: VisionTokens, keep: list[int], stage: int = 0) -> Reduction:
    return method.reduce(stage, tokens, signals(method, tokens, stage), keep)


def merged(reduction: Reduction, tokens: VisionTokens) -> Tensor:
    """``[I, K, D]``: the values of the slots."""
    return slot_values(reduction, tokens.features, tokens)


def check(reduction: Reduction, tokens: VisionTokens, keep: list[int]) -> None:
    """The contract of a Reduction: exactly ``keep[i]`` slots, each with its own anchor, nothing out of range."""
    check_reduction("the method", reduction, tokens, keep)
