import pytest
import torch

from tests.tolerances import TOL, assert_close, assert_same
from vtc.kernels.match import match, unit


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
    index, value = match(q, t, allowed, skip_self, rows)
    assert_same("index", index, want.indices)
    assert_close("cosine", value, want.values)


def test_without_a_target_there_is_none():
    for targets, allowed in (
        (draw(1, 3, 4), torch.zeros(1, 3, dtype=torch.bool)),
        (draw(1, 0, 4), torch.ones(1, 0) > 0),
    ):
        index, value = match(draw(1, 5, 4), targets, allowed)
        assert index.tolist() == [[-1] * 5]
        assert (value == -torch.inf).all()


def test_nan_matches_nothing():
    q, t = draw(1, 3, 4), draw(1, 2, 4, seed=1)
    q[0, 1, 0] = t[0, 0, 0] = torch.nan
    assert match(q, t, torch.ones(1, 2, dtype=torch.bool))[0].tolist() == [[1, -1, 1]]


def test_unit():
    assert_close("norm", unit(draw(3, 4).half() * 1e4).norm(dim=1), torch.ones(3))
    assert unit(draw(3, 4)).dtype == torch.float64
    assert (unit(torch.zeros(2, 4)) == 0).all()


def definition(a, b, allowed, skip_self=False):
    a, b = a.double(), b.double()
    cosine = (a / a.norm(dim=2, keepdim=True).clamp_min(1e-12)) @ (b / b.norm(dim=2, keepdim=True).clamp_min(1e-12)).mT
    refused = ~allowed[:, None]
    if skip_self:
        refused = refused | torch.eye(a.shape[1], b.shape[1], dtype=torch.bool)
    return cosine.masked_fill(refused, -torch.inf)


NARROW = [t for t in TOL if t != torch.float64]


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("shape", [(1, 1, 1), (65, 70, 16), (7, 300, 72), (130, 33, 80), (20, 20, 256)], ids=str)
def test_kernel_equals_float64(shape, dtype):
    n, k, d = shape
    a, b = draw(2, n, d).to(dtype), draw(2, k, d, seed=1).to(dtype)
    allowed = torch.rand(2, k, generator=torch.Generator().manual_seed(2)) < 0.7
    for skip_self in (False, True):
        want = definition(a, b, allowed, skip_self)
        index, value = match(a, b, allowed, skip_self)
        assert_close("cosine", value, want.max(2).values.float())
        there = index >= 0
        assert_same("none", there, want.max(2).values > -torch.inf)
        chosen = want.gather(2, index.clamp(min=0)[..., None])[..., 0]
        assert_close("cosine of the index", chosen[there].float(), value[there])
        again = match(a, b, allowed, skip_self)
        assert_same("index again", again[0], index)
        assert_same("cosine again", again[1], value)


@pytest.mark.parametrize("dtype", NARROW)
def test_kernel_ties_go_to_the_lower_index(dtype):
    """Copies of one target in one tile, in other tiles and in other splits; a zero token ties with all. Small integers:
    a CPU's matrix product can round equal columns differently."""
    b = draw(1, 300, 24, seed=1).mul(3).round().to(dtype)
    b[0, [7, 9, 70, 140, 299]] = b[0, 200].clone()
    a = b[:, [200, 7, 299, 0]].clone()
    a[0, 3] = 0
    allowed = torch.ones(1, 300, dtype=torch.bool)
    assert match(a, b, allowed)[0].tolist() == [[7, 7, 7, 0]]
    allowed[0, [0, 7]] = False
    assert match(a, b, allowed)[0].tolist() == [[9, 9, 9, 1]]


def test_kernel_without_a_target_and_with_nan():
    a, b = draw(1, 70, 4).float(), draw(1, 80, 4, seed=1).float()
    index, value = match(a, b, torch.zeros(1, 80, dtype=torch.bool))
    assert (index == -1).all() and (value == -torch.inf).all()
    a[0, 1, 0] = a[0, 2, 1] = torch.nan
    a[0, 3, 0] = torch.inf
    b[0, :79, 0] = torch.nan
    index = match(a, b, torch.ones(1, 80, dtype=torch.bool))[0]
    assert index[0, :5].tolist() == [79, -1, -1, -1, 79]
    assert match(a, b[:, :0], torch.ones(1, 0) > 0)[0].tolist() == [[-1] * 70]


def test_kernel_takes_strides_of_any_kind():
    a, b = (draw(1, n, 20, seed=n).mul(3).round().float() for n in (9, 70))
    allowed = torch.ones(1, 70, dtype=torch.bool)
    want = match(a, b, allowed)[0]
    assert_same("columns first", match(a.mT.contiguous().mT, b.mT.contiguous().mT, allowed)[0], want)
    both = torch.stack([b, b], 2).flatten(1, 2)[:, ::2]
    assert_same("every second", match(a, both, allowed)[0], want)
    assert (match(a, b[:, :1].expand(-1, 70, -1), allowed[:, :1].expand(-1, 70))[0] == 0).all()


@pytest.mark.parametrize("skip_self", [False, True])
def test_kernel_opcheck(skip_self):
    a, b = draw(2, 9, 5).float(), draw(2, 7, 5, seed=1).float()
    torch.library.opcheck(torch.ops.vtc.match.default, (a, b, torch.ones(2, 7, dtype=torch.bool), skip_self, 4))
