import torch

from tests.pictures import WIDTH, batch, check, picture, reduce
from tests.tolerances import assert_close, assert_same
from vtc.kernels.merge import merge
from vtc.methods import registry
from vtc.methods._share import share
from vtc.tokens import Reduction


def spread(tokens, kept):
    return share(tokens, Reduction.keep(torch.tensor(kept), tokens))


def test_each_dropped_token_joins_its_nearest_kept_one():
    tokens = batch([picture((1, 6, 6), 1), picture((1, 3, 4), 2)])
    kept = [[3, 8, 20, 31], [0, 5, 11, -1]]
    got = spread(tokens, kept)
    check(got, tokens, [4, 3])
    for i, own in enumerate(kept):
        own = [k for k in own if k >= 0]
        x = torch.nn.functional.normalize(tokens.features[i, : tokens.count[i]].double(), dim=1)
        want = (x @ x[own].T).argmax(1)
        want[own] = torch.arange(len(own))
        assert got.slot[i, : tokens.count[i]].tolist() == want.tolist()
    assert got.sizes(tokens).sum(1).tolist() == [36, 12]
    values = merge(tokens.features, got.slot, got.weight, tokens.size, 4)
    assert_close("a slot", values[0, 2], tokens.features[0, got.slot[0] == 2].mean(0))


def test_ties_go_to_the_lower_kept_token():
    tokens = batch([picture((1, 1, 6), 1)])
    tokens.features[0] = tokens.features[0, 0]
    assert spread(tokens, [[1, 4]]).slot.tolist() == [[0, 0, 0, 0, 1, 0]]


def test_only_the_direction_counts_and_zeros_are_no_nan():
    tokens = batch([picture((1, 1, 5), 1)])
    tokens.features[0] = torch.eye(WIDTH)[[0, 1, 1, 0, 2]] * torch.tensor([[1.0], [1], [50], [1e-3], [0]])
    assert spread(tokens, [[0, 1]]).slot.tolist() == [[0, 1, 1, 0, 0]]


def test_half_precision_does_not_overflow():
    tokens = batch([picture((1, 4, 4), 1, torch.float16)])
    tokens.features *= 1e4
    assert spread(tokens, [[0, 9]]).sizes(tokens).sum() == 16


def test_nan_tokens_stay_dropped_and_nan_anchors_take_none():
    tokens = batch([picture((1, 1, 6), 1)])
    tokens.features[0, [1, 4]] = torch.nan
    got = spread(tokens, [[0, 4]])
    assert got.slot.tolist() == [[0, -1, 0, 0, 1, 0]]


def test_sizes_the_tokens_come_with_add_up():
    tokens = batch([picture((1, 1, 4), 1)])
    tokens.size[0] = torch.tensor([4.0, 1, 2, 9])
    got = spread(tokens, [[0, 3]])
    assert got.sizes(tokens).sum() == 16


def test_a_method_with_its_own_values_keeps_them():
    tokens = batch([picture((1, 5, 5), 1)])
    plain = reduce(registry["visionzip"](contextual=0), tokens, [6])
    assert plain.weight is not None
    got = share(tokens, plain)
    before, after = (merge(tokens.features, r.slot, r.weight, tokens.size, 6) for r in (plain, got))
    assert_same("values", after, before)
    assert got.sizes(tokens).sum() == 25


def test_a_method_that_merges_hands_over_only_what_it_dropped():
    tokens = batch([picture((1, 4, 4), 1)])
    pool = reduce(registry["pool"](), tokens, [4])
    assert_same("slots", share(tokens, pool).slot, pool.slot)


def test_blocks_do_not_show():
    """1,500 tokens are two blocks of rows; a picture of 1,500 is shared as the definition says."""
    tokens = batch([picture((1, 30, 50), 3)])
    kept = torch.arange(0, 1500, 60)[None]
    x = torch.nn.functional.normalize(tokens.features[0], dim=1)
    want = (x @ x[kept[0]].T).argmax(1)
    got = spread(tokens, kept.tolist()).slot[0]
    assert (got != want).sum() == 0


def test_gradient_reaches_every_token():
    tokens = batch([picture((1, 3, 4), 1, torch.float64)])
    tokens.features.requires_grad_()
    got = spread(tokens, [[2, 7]])
    merge(tokens.features, got.slot, got.weight, tokens.size, 2).sum().backward()
    assert (tokens.features.grad.abs() > 0).all()


def test_padding_joins_nothing():
    tokens = batch([picture((1, 3, 4), 1), picture((1, 1, 3), 2)])
    tokens.features[1, 3:] = 1.0
    got = spread(tokens, [[2, 7], [1, -1]])
    check(got, tokens, [2, 1])
    assert got.sizes(tokens).sum(1).tolist() == [12, 3]
