import pytest
import torch

from tests.golden import cases
from tests.pictures import batch, picture, without_grid
from tests.tolerances import assert_same
from vtc.errors import UnsupportedModel
from vtc.methods.hired import HiRED, quotas, tiles


def in_tiles(values, split):
    """``[tiles, N]`` as ``[pictures, tiles x N]``, padded."""
    return torch.nn.utils.rnn.pad_sequence([v.flatten() for v in values.split(split)], batch_first=True)


@pytest.mark.parametrize(("given", "want", "params"), cases("hired"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_authors(given, want, params, dtype):
    """Their floors lose some tokens of the budget; here these are the best that are left."""
    split, n = params["tiles_per_image"], params["tokens_per_tile"]
    tokens = batch([picture((p, 1, n), 1) for p in split])
    keep = [int(p * n * params["token_budget_rate"]) for p in split]
    early, late = (in_tiles(given[f"{name}_attn"].to(dtype).sum(1), split) for name in ("early", "late"))
    method = HiRED(alpha=params["alpha"])
    quota = quotas(early, tiles(tokens, "first"), tokens, keep, params["alpha"])
    assert_same("quota", torch.cat([q[:p] for q, p in zip(quota, split, strict=True)]), want["budget"])
    got = method.reduce(0, tokens, dict(zip(method.signals(0), (early, late), strict=True)), keep)
    theirs = in_tiles(want["mask"], split)
    assert_same("theirs are kept", (got.slot >= 0) & theirs, theirs)
    for i, k in enumerate(keep):
        more, left = ((got.slot[i] >= 0) & ~theirs[i], (got.slot[i] < 0) & tokens.valid[i])
        assert int(theirs[i].sum()) + int(more.sum()) == k
        assert not more.any() or late[i, more].min() >= late[i, left].max()


def kept(tokens, early, late, keep, **options):
    method = HiRED(**options)
    return method.reduce(0, tokens, dict(zip(method.signals(0), (early, late), strict=True)), keep).anchor.tolist()


@pytest.mark.parametrize("whole", ["first", "last"])
def test_a_tile_gets_by_the_marks_in_its_run(whole):
    """Three tiles of four tokens, one of them the whole picture, whose first half is what the early layer looks at."""
    tokens = batch([picture((3, 2, 2), 1)])
    start = 0 if whole == "first" else 8
    early = torch.zeros(1, 12)
    early[0, start : start + 2] = 1
    late = torch.linspace(1, 0, 12)[None]
    first, second = (4, 8) if whole == "first" else (0, 4)
    want = sorted([start, start + 1, start + 2, first, first + 1, first + 2])
    assert kept(tokens, early, late, [6], whole=whole) == [want]
    early[0, start + 2] = 2  # now one mark in each half; the token that is left goes to the best anywhere
    want = sorted([start, start + 1, start + 2, first, second, 3 if whole == "first" else 1])
    assert kept(tokens, early, late, [6], whole=whole) == [want]


def test_a_picture_in_one_piece_is_its_whole():
    tokens = batch([picture((1, 3, 4), 1)])
    late = torch.arange(12.0)[None]
    assert kept(tokens, torch.ones(1, 12), late, [5]) == [[7, 8, 9, 10, 11]]


def test_without_tiles_it_raises():
    tokens = without_grid(batch([picture((1, 4, 4), 1)]))
    with pytest.raises(UnsupportedModel, match="use a method that needs no grid"):
        kept(tokens, torch.ones(1, 16), torch.ones(1, 16), [5])


@pytest.mark.parametrize("alpha", [-0.1, 1.1, True, float("nan"), "0.5", None])
def test_bad_options(alpha):
    with pytest.raises(ValueError, match=r"alpha=.* is not a share in \[0, 1\]"):
        HiRED(alpha=alpha)
    with pytest.raises(ValueError, match="give 'first' or 'last'"):
        HiRED(whole="middle")
