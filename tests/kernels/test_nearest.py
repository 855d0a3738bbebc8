import pytest
import torch

from tests.tolerances import assert_close, assert_same
from vtc.kernels.nearest import nearest, unit


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("rows", [1, 3, 1024])
@pytest.mark.parametrize("skip_self", [False, True])
def test_equals_the_definition(rows, skip_self):
    q, t = draw(2, 10, 5), draw(2, 10, 5, seed=1)
    allowed = torch.rand(2, 10, generator=torch.Generator().manual_seed(2)) < 0.7
    cosine = torch.nn.functional.cosine_similarity(q[:, :, None], t[:, None], dim=3)
    refused = ~allowed[:, None] | (torch.eye(10, dtype=torch.bool) & skip_self)
    want = cosine.masked_fill(refused, -torch.inf).max(2)
    index, value = nearest(q, t, allowed, skip_self, rows)
    assert_same("index", index, want.indices)
    assert_close("cosine", value, want.values)


def test_without_a_target_there_is_none():
    for targets, allowed in (
        (draw(1, 3, 4), torch.zeros(1, 3, dtype=torch.bool)),
        (draw(1, 0, 4), torch.ones(1, 0) > 0),
    ):
        index, value = nearest(draw(1, 5, 4), targets, allowed)
        assert index.tolist() == [[-1] * 5]
        assert (value == -torch.inf).all()


def test_nan_matches_nothing():
    q, t = draw(1, 3, 4), draw(1, 2, 4, seed=1)
    q[0, 1, 0] = t[0, 0, 0] = torch.nan
    assert nearest(q, t, torch.ones(1, 2, dtype=torch.bool))[0].tolist() == [[1, -1, 1]]


def test_unit():
    assert_close("norm", unit(draw(3, 4).half() * 1e4).norm(dim=1), torch.ones(3))
    assert unit(draw(3, 4)).dtype == torch.float64
    assert (unit(torch.zeros(2, 4)) == 0).all()
