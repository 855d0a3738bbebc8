import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

from tests.pictures import WIDTH, batch, picture, reduce
from tests.tolerances import assert_close
from vtc.kernels.merge import merge
from vtc.methods.pool import Pool


def pooled(tokens, keep):
    got = reduce(Pool(), tokens, [keep])
    return got, merge(tokens.features, got.slot, got.weight, tokens.size, keep)[0]


def test_a_quarter_is_two_by_two_average_pooling():
    tokens = batch([picture((1, 8, 6), 1)])
    want = avg_pool2d(tokens.features[0].T.reshape(WIDTH, 8, 6), 2).flatten(1).T
    assert_close("pooled", pooled(tokens, 12)[1], want)


def test_square_counts_are_adaptive_pooling_where_it_divides():
    for side in (1, 2, 3, 4, 6, 12):
        tokens = batch([picture((1, 12, 12), side)])
        want = adaptive_avg_pool2d(tokens.features[0].T.reshape(WIDTH, 12, 12), side).flatten(1).T
        values = pooled(tokens, side * side)[1]
        assert_close(f"pooled to {side} x {side}", values, want)


@pytest.mark.parametrize("shape", [(14, 14), (2, 10), (12, 3)])
def test_cells_are_near_equal_rectangles_that_cover_the_picture(shape):
    tokens = batch([picture((1, *shape), 1)])
    count = tokens.count[0]
    for keep in [*range(1, 20), *range(20, count, 8), count - 1, count]:
        got, _ = pooled(tokens, keep)
        sizes = got.slot[0].bincount(minlength=keep)
        assert sizes.sum() == count
        assert sizes.max() <= 3 * sizes.min() + 3
        for cell in range(keep):
            y, x = tokens.grid[0, got.slot[0] == cell, 1:].unbind(1)
            assert len(y) == (y.max() - y.min() + 1) * (x.max() - x.min() + 1)


def test_the_anchor_is_the_middle_of_its_cell():
    tokens = batch([picture((1, 9, 9), 1)])
    got, _ = pooled(tokens, 9)
    assert tokens.grid[0, got.anchor[0], 1:].tolist() == [[y, x] for y in (1, 4, 7) for x in (1, 4, 7)]


def test_a_video_pools_inside_each_frame_while_it_can():
    tokens = batch([picture((4, 4, 4), 1)])
    got, _ = pooled(tokens, 16)
    for cell in range(16):
        assert tokens.grid[0, got.slot[0] == cell, 0].unique().numel() == 1
    got, values = pooled(tokens, 2)
    assert_close("two halves", values, tokens.features[0].view(2, 32, WIDTH).mean(1))
    assert torch.equal(got.sizes(tokens), torch.tensor([[32.0, 32.0]]))
