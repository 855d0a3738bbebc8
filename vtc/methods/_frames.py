"""Tokens of a video by frame and place: what the video methods share. A still picture is a video of one frame, and an
AnyRes picture one of its views."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.errors import UnsupportedModel
from vtc.kernels.match import unit
from vtc.kernels.merge import merge
from vtc.tokens import VisionTokens


def comparable(name: str, tokens: VisionTokens) -> Tensor:
    """``[I, N]``: the tokens that have a frame and a place, and no NaN or infinity.

    Raises ``UnsupportedModel`` for pictures that have no places at all.
    """
    placed = tokens.valid & (tokens.grid >= 0).all(dim=2)
    if bool((tokens.valid.any(dim=1) & ~placed.any(dim=1)).any()):
        raise UnsupportedModel(
            f"{name} needs to know the frame and the place of vision tokens, and this model's tokens have none "
            "(learned queries); use a method that needs no grid, such as 'random', 'divprune' or 'bipartite'"
        )
    return placed & tokens.features.isfinite().all(dim=2)


def earlier(tokens: VisionTokens, steps: Tensor | int, among: Tensor) -> Tensor:
    """``[I, N]``: of the tokens ``among [I, N]`` the one at the same place ``steps [I, N]`` frames earlier, -1 where
    there is none. Of several at one place the lowest counts."""
    t, y, x = tokens.grid.clamp(min=0).unbind(2)
    frame = (y.max() + 1) * (x.max() + 1)
    place = t * frame + y * (x.max() + 1) + x
    there, order = place.where(among, torch.iinfo(place.dtype).max).sort(dim=1, stable=True)
    wanted = place - steps * frame
    found = torch.searchsorted(there, wanted).clamp(max=place.shape[1] - 1)
    same = among & (wanted >= 0) & (there.gather(1, found) == wanted)
    return order.gather(1, found).where(same, -1)


def cosine(features: Tensor, index: Tensor) -> Tensor:
    """``[I, N]``: cosine of each token of ``features [I, N, D]`` and the token ``index [I, N]``; -inf for -1."""
    direction = unit(features)
    other = direction.gather(1, index.clamp(min=0)[..., None].expand_as(direction))
    return (direction * other).sum(dim=2).masked_fill(index < 0, -torch.inf)


def ranked(score: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """``[I, N]`` each: a token's rank in its group by ``score``, 0 = highest, and how many the group ``[I, N]`` has.

    Ties go to the lower index, NaN ranks last.
    """
    order = score.masked_fill(score.isnan(), -torch.inf).argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, group.gather(1, order).argsort(dim=1, stable=True))
    sorted_group = group.gather(1, order)
    first, after = (torch.searchsorted(sorted_group, sorted_group, right=right) for right in (False, True))
    place = torch.arange(group.shape[1], device=group.device) - first
    back = order.argsort(dim=1)
    return place.gather(1, back), (after - first).gather(1, back)


def runs(begins: Tensor) -> tuple[Tensor, Tensor]:
    """``[I, F]`` each: first and last frame of the run each frame is in; ``begins [I, F]``: a run begins here."""
    index = torch.arange(begins.shape[1], device=begins.device).expand_as(begins)
    first = index.where(begins, 0).cummax(dim=1).values
    ends = torch.cat([begins[:, 1:], torch.ones_like(begins[:, :1])], dim=1)
    return first, index.where(ends, begins.shape[1]).flip(1).cummin(dim=1).values.flip(1)


def group_mean(values: Tensor, group: Tensor, groups: int) -> Tensor:
    """``[I, groups, d]``: the mean of each group's ``values [I, N, d]``; ``group [I, N]``, -1 = none."""
    return merge(values, group, None, torch.ones_like(values[..., 0]), groups)


def group_size(group: Tensor, groups: int) -> Tensor:
    """``[I, groups]``: how many tokens each group has; ``group [I, N]``, -1 = none."""
    counts = group.new_zeros(len(group), groups + 1)
    return counts.scatter_add_(1, group.where(group >= 0, groups), torch.ones_like(group))[:, :groups]


def check_options(method: str, options: object, shares: tuple[str, ...] = (), counts: tuple[str, ...] = ()) -> None:
    """Raise ``ValueError`` unless ``shares`` are numbers in [0, 1] and ``counts`` ints of at least 1."""
    for name in (*shares, *counts):
        value, whole = getattr(options, name), name in counts
        number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not number or (value < 1 if whole else not 0 <= value <= 1):
            wanted = "an int of at least 1" if whole else "a number in [0, 1]"
            raise ValueError(f"{method}: {name}={value!r} is not {wanted}")
