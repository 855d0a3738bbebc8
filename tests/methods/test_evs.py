import pytest
import torch

from tests.golden import cases
from tests.pictures import batch, check, picture, reduce, video, without_grid
from tests.tolerances import assert_same
from vtc.errors import UnsupportedModel
from vtc.methods.evs import EVS


@pytest.mark.parametrize(("given", "want", "params"), cases("evs"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_formula(given, want, params, dtype):
    features = given["x"].to(dtype).unflatten(0, (params["thw"][0], -1))
    got = EVS().reduce(0, video(features), {}, [len(want["keep"])])
    assert_same("kept", got.anchor[0], want["keep"])


def test_what_moves_is_kept():
    features = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0)).repeat(4, 1, 1)
    features[2, 3] *= -1
    assert reduce(EVS(), video(features), [7]).anchor[0].tolist() == [0, 1, 2, 3, 4, 13, 18]


def test_the_frame_before_is_found_in_any_order_of_tokens():
    tokens = batch([picture((4, 3, 3), 1)])
    order = torch.randperm(36, generator=torch.Generator().manual_seed(0))
    turned = batch([picture((4, 3, 3), 1)])
    turned.features, turned.grid = tokens.features[:, order], tokens.grid[:, order]
    want = reduce(EVS(), tokens, [20]).anchor[0]
    got = reduce(EVS(), turned, [20]).anchor[0]
    assert sorted(order[got].tolist()) == want.tolist()


def test_tokens_without_a_place_go_first():
    """Video-LLaVA's frames keep a CLS token, which stands nowhere."""
    tokens = batch([picture((3, 2, 2), 1), picture((1, 2, 2), 2)])
    tokens.grid[0, [0, 4, 8]] = -1
    got = reduce(EVS(), tokens, [9, 2])
    check(got, tokens, [9, 2])
    assert not {0, 4, 8} & set(got.anchor[0].tolist())


def test_tokens_without_places_are_refused():
    tokens = without_grid(batch([picture((1, 3, 3), 1)]))
    with pytest.raises(UnsupportedModel, match=r"the frame and the place.*use a method that needs no grid"):
        reduce(EVS(), tokens, [2])
