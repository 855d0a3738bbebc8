"""Pictures in, rows of the decoder out; each row carries, in channels behind its features, what it stands for and where
it stood."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from vtc.engine.stages import keep_newlines, slot_values, split_newlines
from vtc.engine.state import Remaining
from vtc.integrations.vllm.span import HERE, Span
from vtc.methods._share import share
from vtc.methods.base import Method
from vtc.models.base import Place
from vtc.signals.base import Signal
from vtc.tokens import Reduction, VisionTokens

SIDE = 4  # numbers of a row: its size, and where it stood: t, y, x behind its picture's first position
DIGIT = 256  # bfloat16 holds whole numbers up to here: a number below its square takes two channels


@dataclass(frozen=True)
class Picture:
    """One picture behind the projector. features ``[N, W]``: as the decoder's input, and behind that what its later
    layers add (DeepStack)."""

    features: Tensor
    place: Place
    span: Span

    def __post_init__(self) -> None:
        if not len(self.features) == len(self.place.newline) == self.span.count:
            raise ValueError(
                f"the tower gave {len(self.features)} tokens, {len(self.place.newline)} have a place, and the prompt "
                f"has {self.span.count} placeholders; the processor's settings do not fit the model"
            )


@dataclass(frozen=True)
class Kept:
    """Rows of one picture: features ``[R, W]``; size, index ``[R]``: how many tokens each stands for, and which one of
    the picture's span it was; grid ``[R, 3]``."""

    features: Tensor
    size: Tensor
    index: Tensor
    grid: Tensor


@torch.no_grad()
def reduced(
    pictures: Sequence[Picture],
    method: Method,
    width: int,
    signals: Mapping[Signal, Tensor],
    words: Callable[[Tensor], Tensor],
) -> list[Kept]:
    """The rows of each picture, in order.

    width: of the decoder's input, which is what a method looks at; signals: of all pictures, padded to the longest;
    words: the decoder's embedding.
    """
    device = pictures[0].features.device
    tokens, wide, remaining = opened(pictures, width, device)
    keep, lines = split_newlines([one.span.keep for one in pictures], remaining.count, remaining.newlines)
    if keep == remaining.count and lines == remaining.newlines:
        reduction = Reduction.keep(tokens.row.new_tensor(range(tokens.row.shape[1])).where(tokens.valid, -1), tokens)
    else:
        reduction = method.reduce(0, tokens, dict(signals), keep)
        if method.share:
            reduction = share(tokens, reduction)
    values, anchor = slot_values(reduction, wide, tokens), reduction.anchor.clamp(min=0)
    if reduction.refine is not None:
        refined = reduction.refine(tokens.features, values[..., :width])
        values = torch.cat([refined, values[..., width:]], dim=-1)
    sizes = reduction.sizes(tokens).long() if method.share else torch.ones_like(anchor)
    grid = tokens.grid.gather(1, anchor[..., None].expand(-1, -1, 3))
    used = (reduction.anchor >= 0)[..., None]
    row, ends = tokens.row.gather(1, anchor), keep_newlines(remaining, grid.where(used, -2), lines)
    out = []
    for i, (picture, k, n) in enumerate(zip(pictures, keep, lines, strict=True)):
        newline = ends[0][i, :n]
        own = Kept(
            torch.cat([values[i, :k], picture.features[newline]]),
            torch.cat([sizes[i, :k], torch.ones_like(newline)]),
            torch.cat([row[i, :k], newline]),
            torch.cat([grid[i, :k], ends[1][i, :n]]),
        )
        out.append(among_words(own, picture.span, words))
    return out


def opened(pictures: Sequence[Picture], width: int, device: torch.device) -> tuple[VisionTokens, Tensor, Remaining]:
    """The scored tokens, all that each carries ``[I, N, W]``, and the newlines; rows count within each picture."""
    newline = [one.place.newline.to(device) for one in pictures]
    grids = [one.place.grid.to(device) for one in pictures]
    rows = [torch.arange(len(one), device=device) for one in newline]
    scored = [~one for one in newline]

    def both(values: Sequence[Tensor], where: Sequence[Tensor], filler: int) -> Tensor:
        return pad_sequence([v[w] for v, w in zip(values, where, strict=True)], True, filler)

    wide = both([one.features for one in pictures], scored, 0)
    row, grid = both(rows, scored, -1), both(grids, scored, -1)
    count = [int(one.sum()) for one in scored]
    valid = row >= 0
    tokens = VisionTokens(
        features=wide[..., :width],
        valid=valid,
        size=torch.ones(valid.shape, device=device),
        grid=grid,
        row=row.clamp(min=0),
        prompt=torch.zeros(len(count), dtype=torch.int64, device=device),
        count=count,
    )
    ends = both(rows, newline, -1), both(grids, newline, -1)
    lines = [int(one.sum()) for one in newline]
    return tokens, wide, Remaining(tokens.row, valid, tokens.size, grid, count, *ends, lines)


def among_words(own: Kept, span: Span, words: Callable[[Tensor], Tensor]) -> Kept:
    """In the order of the span, with the words that stood between."""
    ids = own.index.new_tensor(span.ids)
    said = (ids != HERE).nonzero()[:, 0]
    features, size = own.features, own.size
    index = (ids == HERE).nonzero()[:, 0][own.index]
    if len(said):
        embedded = words(ids[said]).to(features)
        features = torch.cat([features, pad(embedded, (0, features.shape[1] - embedded.shape[1]))])
        size = torch.cat([size, torch.ones_like(said)])
        index = torch.cat([index, said])
    grid = torch.cat([own.grid, own.grid.new_full((len(said), 3), -1)])
    order = index.argsort()
    return Kept(features[order], size[order], index[order], grid[order])


def packed(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """``[..., 2 n]`` for whole numbers ``[..., n]`` below 65,536."""
    return torch.cat([numbers // DIGIT, numbers % DIGIT], dim=-1).to(dtype)


def unpacked(channels: Tensor) -> Tensor:
    """The numbers again."""
    high, low = channels.long().chunk(2, dim=-1)
    return high * DIGIT + low
