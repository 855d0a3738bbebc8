"""What every video method must do on videos in which scenes change and things stand still."""

from __future__ import annotations

import pytest
import torch

from tests.pictures import batch, check, picture, reduce, video
from tests.tolerances import assert_same
from vtc.methods import registry
from vtc.tokens import VisionTokens

each = pytest.mark.parametrize("name", ["evs", "dycoke", "vidcom2", "fastvid", "holitom", "prunevid"])


def scenes(lengths: tuple[int, ...], shape: tuple[int, int], seed: int) -> VisionTokens:
    """A video of scenes of so many frames each, in which about half of the places move."""
    draw = torch.Generator().manual_seed(seed)
    n, frames = shape[0] * shape[1], []
    for length in lengths:
        still, moves = torch.randn(n, 8, generator=draw), torch.rand(n, 1, generator=draw) < 0.5
        for _ in range(length):
            frames.append(still + torch.randn(n, 8, generator=draw) * torch.where(moves, 1.0, 0.05))
    tokens = picture((sum(lengths), *shape), seed)
    tokens.features = video(torch.stack(frames)).features
    return tokens


@each
@pytest.mark.parametrize("part", [0.03, 0.2, 0.5, 0.9])
def test_ragged_videos_and_pictures_are_reduced_as_alone(name, part):
    made = [
        scenes((5, 7), (4, 5), 1),
        picture((1, 7, 6), 2),
        scenes((3, 1, 4), (3, 3), 3),
        scenes((4, 4, 12), (4, 4), 4),
    ]
    keep = [max(1, int(part * p.count[0])) for p in made]
    tokens = batch(made, 3)
    method = registry[name]()
    together = reduce(method, tokens, keep)
    check(together, tokens, keep)
    for i, (one, k) in enumerate(zip(made, keep, strict=True)):
        alone = reduce(method, batch([one]), [k])
        assert_same("slot", together.slot[i, : one.count[0]], alone.slot[0])
        if alone.weight is not None:
            assert_same("weight", together.weight[i, : one.count[0]], alone.weight[0])


@each
def test_any_set_of_places_works(name):
    """Holes, repeated places, frames out of order, tokens that stand nowhere: still exactly as many as asked for."""
    draw = torch.Generator().manual_seed(0)
    for trial in range(12):
        tokens = batch([scenes((3, 2), (2, 4), trial), picture((2, 3, 3), 1)], 1)
        tokens.grid[0] = torch.randint(0, 1 + trial, tokens.grid[0].shape, generator=draw)
        tokens.grid[0, :trial] = -1
        tokens.features[0, 5] = torch.nan
        for k in (1, 9, 25, 39, 40):
            check(reduce(registry[name](), tokens, [k, 7]), tokens, [k, 7])


@each
def test_everything_that_is_kept_comes_before_what_cannot_be_compared(name):
    tokens = batch([scenes((3, 3), (3, 4), 1)])
    tokens.features[0, [4, 40]] = torch.nan
    tokens.grid[0, [7, 20]] = -1
    for k in (10, 36, 68):
        got = reduce(registry[name](), tokens, [k])
        assert not {4, 40, 7, 20} & set(got.anchor[0].tolist())
        assert (got.slot[0, [4, 40, 7, 20]] == -1).all()
