import pytest
import torch

from tests.pictures import batch, check, picture, reduce, without_grid
from tests.tolerances import assert_same
from vtc.errors import UnsupportedModel
from vtc.methods.grid import Grid
from vtc.methods.pool import Pool


def kept(tokens, keep):
    got = reduce(Grid(), tokens, keep)
    return tokens.grid[0, got.anchor[0]].tolist()


def test_a_quarter_is_every_second_row_and_column():
    got = kept(batch([picture((1, 8, 12), 1)]), [24])
    assert got == [[0, y, x] for y in range(0, 8, 2) for x in range(0, 12, 2)]


def test_a_ninth_is_the_middle_of_every_three_by_three():
    assert kept(batch([picture((1, 6, 6), 1)]), [4]) == [[0, 1, 1], [0, 1, 4], [0, 4, 1], [0, 4, 4]]


@pytest.mark.parametrize("side", [7, 12, 14, 24])
def test_spread_is_even_at_every_count(side):
    """No token is much farther from a kept one than in the ideal square lattice of that density."""
    tokens = batch([picture((1, side, side), 1)])
    places = tokens.grid[0, :, 1:].double()
    for keep in range(1, side * side + 1, 1 + side * side // 30):
        anchor = reduce(Grid(), tokens, [keep]).anchor[0]
        assert len(anchor) == keep
        farthest = torch.cdist(places, places[anchor]).amin(1).max()
        assert farthest <= 1.2 * side / keep**0.5 + 1


def test_frames_share_alike_and_few_tokens_spread_over_frames():
    tokens = batch([picture((8, 3, 4), 1)])
    assert torch.tensor(kept(tokens, [24]))[:, 0].bincount().tolist() == [3] * 8
    assert [t for t, _, _ in kept(tokens, [4])] == [0, 2, 4, 6]


def test_tiles_of_different_shapes_share_by_area():
    """A picture made of a small view and a large one, as in AnyRes."""
    small, large = picture((1, 4, 4), 1), picture((1, 8, 6), 2)
    large.grid[..., 0] = 1
    tokens = batch([small])
    tokens.features = torch.cat([small.features, large.features], 1)
    tokens.grid = torch.cat([small.grid, large.grid], 1)
    tokens.valid = torch.ones(1, 64, dtype=torch.bool)
    tokens.row, tokens.size, tokens.count = torch.arange(64)[None], torch.ones(1, 64), [64]
    assert torch.tensor(kept(tokens, [16]))[:, 0].bincount().tolist() == [4, 12]
    for keep in range(1, 65):
        for method in (Grid(), Pool()):
            check(reduce(method, tokens, [keep]), tokens, [keep])


def test_any_set_of_places_works():
    """Holes, one row, repeated places, tokens out of raster order: still exactly as many as asked for."""
    draw = torch.Generator().manual_seed(0)
    for trial in range(30):
        tokens = batch([picture((2, 4, 5), trial)])
        tokens.grid = torch.randint(0, 1 + trial // 3, tokens.grid.shape, generator=draw)
        for keep in (1, 2, 7, 20, 39, 40):
            for method in (Grid(), Pool()):
                check(reduce(method, tokens, [keep]), tokens, [keep])
            alone = reduce(Pool(), tokens, [keep])
            assert (alone.slot >= 0).all()
            beside_a_taller_one = reduce(Pool(), batch([tokens, picture((2, 30, 2), 1)]), [keep, 9])
            assert_same("slot", beside_a_taller_one.slot[0, :40], alone.slot[0])


@pytest.mark.parametrize("method", [Grid(), Pool()])
def test_tokens_without_places_are_refused(method):
    tokens = without_grid(batch([picture((1, 3, 3), 1)]))
    with pytest.raises(UnsupportedModel, match=r"place in its picture.*use a method that needs no grid"):
        reduce(method, tokens, [2])
