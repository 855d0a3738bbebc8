from collections import Counter

import pytest
import torch

from tests.pictures import batch, picture, reduce
from vtc.methods.random import Random


def test_every_token_is_kept_equally_often():
    tokens = batch([picture((1, 4, 5), 1)])
    kept = Counter(a for seed in range(400) for a in reduce(Random(seed=seed), tokens, [5]).anchor[0].tolist())
    assert set(kept) == set(range(20))
    assert all(60 < times < 145 for times in kept.values())  # 100 expected, sd 8.7


def test_one_seed_is_one_draw_and_another_is_another():
    tokens = batch([picture((1, 8, 8), 1), picture((1, 8, 8), 2)])
    first, again, other = (reduce(Random(seed=s), tokens, [16, 16]).anchor.tolist() for s in (3, 3, 4))
    assert first == again != other
    assert first[0] != first[1], "pictures of one size must not keep the same places"


def test_the_global_seed_does_not_matter():
    torch.manual_seed(1)
    first = reduce(Random(), batch([picture((1, 8, 8), 1)]), [16]).anchor.tolist()
    torch.manual_seed(2)
    assert first == reduce(Random(), batch([picture((1, 8, 8), 1)]), [16]).anchor.tolist()


@pytest.mark.parametrize("seed", [-1, True, 1.0, "1", None, 2**63])
def test_bad_seeds(seed):
    with pytest.raises(ValueError, match=r"seed=.* is not an int in \[0, 2\*\*63\)"):
        Random(seed=seed)


def test_layer_moves_the_cut():
    assert Random(layer=2).stages()[0].index(8) == 2
    assert Random(layer=2 / 32).stages()[0].index(8) == 1
    with pytest.raises(ValueError, match="share=True"):
        Random(layer=2, share=True)
    with pytest.raises(ValueError, match="layer -1"):
        Random(layer=-1)
