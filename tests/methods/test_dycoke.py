import pytest
import torch

from tests.golden import cases
from tests.pictures import batch, picture, reduce, video
from tests.tolerances import assert_same
from vtc.methods.dycoke import DyCoke


@pytest.mark.parametrize(("given", "want", "params"), cases("dycoke"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_authors(given, want, params, dtype):
    tokens = video(given["x"].to(dtype).unflatten(0, (params["frames"], -1)))
    got = DyCoke().reduce(0, tokens, {}, [len(want["keep"])])
    assert_same("kept", got.anchor[0], want["keep"])


def kept_by_frame(frames: int, keep: int) -> list[int]:
    tokens = batch([picture((frames, 4, 5), 1)])
    got = reduce(DyCoke(), tokens, [keep])
    return tokens.grid[0, got.anchor[0], 0].bincount(minlength=frames).tolist()


def test_whole_frames_and_frames_cut_alike():
    assert kept_by_frame(8, 85) == [20, 5, 5, 5, 20, 5, 20, 5]


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 7])
def test_few_and_odd_numbers_of_frames_work(frames):
    """There the authors' code fails, or loses the last frame."""
    assert sum(kept_by_frame(frames, 6 * frames)) == 6 * frames
    assert kept_by_frame(frames, 20 * frames - 1)[-1] >= 19


def test_below_the_whole_frames_every_one_of_them_keeps_some():
    assert kept_by_frame(8, 32) == [20, 0, 0, 0, 6, 0, 6, 0]


def test_what_moves_is_kept():
    features = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0)).repeat(4, 1, 1)
    features[1, 3] *= -1
    features[3, 2] *= -1
    assert reduce(DyCoke(), video(features), [12]).anchor[0].tolist() == [*range(5), 8, *range(10, 15), 17]
