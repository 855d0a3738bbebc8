import pytest
import torch

from tests.golden import cases
from tests.pictures import batch, picture, plain, reduce
from tests.tolerances import assert_same
from vtc.methods.divprune import DivPrune


@pytest.mark.parametrize(("given", "want", "params"), cases("divprune"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_authors(given, want, params, dtype):
    x = given["x"].to(dtype)
    got = DivPrune().reduce(0, plain(x[None]), {}, [round(params["ratio"] * len(x))])
    assert_same("kept", got.anchor[0], want["keep"])


def test_is_the_slow_greedy_search():
    """Against the definition written with the full distance matrix."""
    for seed in range(5):
        tokens = batch([picture((1, 5, 6), seed, torch.float64)])
        z = torch.nn.functional.normalize(tokens.features[0], dim=1)
        distance = 1 - z @ z.T
        chosen = [int(distance.sort(0).values[1].argmax())]
        while len(chosen) < 11:
            chosen.append(int(distance[chosen].amin(0).argmax()))
        assert reduce(DivPrune(), tokens, [11]).anchor[0].tolist() == sorted(chosen)


def test_one_of_each_before_a_second_of_any():
    tokens = batch([picture((1, 4, 4), 1)])
    tokens.features[0] = tokens.features[0, :4].repeat(4, 1)
    kept = reduce(DivPrune(), tokens, [4]).anchor[0]
    assert sorted((kept % 4).tolist()) == [0, 1, 2, 3]


def test_copies_are_never_chosen_twice():
    tokens = batch([picture((1, 3, 3), 1)])
    tokens.features[0] = tokens.features[0, 0]
    assert reduce(DivPrune(), tokens, [9]).anchor[0].tolist() == list(range(9))
