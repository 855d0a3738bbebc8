import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tolerances import TOL, assert_close, assert_same
from vtc.kernels.merge import merge


def merge_reference(features, slot, weight, size, slots):
    """The definition in loops, in float64."""
    out = torch.zeros(len(features), slots, features.shape[2], dtype=torch.float64)
    for i in range(len(features)):
        for s in range(slots):
            inside = slot[i] == s
            w = size[i].double() / size[i, inside].double().sum() if weight is None else weight[i].double()
            out[i, s] = (w[inside, None] * features[i, inside].double()).sum(0)
    return out


def case(seed, n=17, slots=5, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(3, n, 6, generator=draw, dtype=torch.float64).to(dtype)
    slot = torch.randint(-1, slots, (3, n), generator=draw)
    size = torch.randint(1, 9, (3, n), generator=draw).float()
    weight = torch.randn(3, n, generator=draw, dtype=torch.float64)
    return features, slot, weight, size, slots


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**20), st.integers(1, 30), st.integers(1, 9), st.booleans())
def test_equals_the_definition(seed, n, slots, weighted):
    features, slot, weight, size, slots = case(seed, n, slots, torch.float64)
    weight = weight if weighted else None
    args = features, slot, weight, size, slots
    assert_close("merged", merge(*args), merge_reference(*args))


@pytest.mark.parametrize("dtype", TOL)
def test_every_dtype_is_summed_wide(dtype):
    features, slot, _, size, slots = case(1, 4000, 2, dtype)
    features = features + 1
    got = merge(features, slot, None, size, slots)
    assert got.dtype == dtype
    assert_close("merged", got, merge_reference(features, slot, None, size, slots).to(dtype))


@pytest.mark.parametrize("dtype", TOL)
def test_a_token_alone_keeps_its_bits(dtype):
    features = torch.randn(2, 4, 8, dtype=torch.float64).mul(1e3).to(dtype)
    features[0, 0] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-7, -1e-7, 3.14])
    slot = torch.tensor([[2, 0, -1, 1], [0, 1, 2, 3]])
    for weight in (None, torch.ones(2, 4)):
        got = merge(features, slot, weight, torch.tensor([[3.0, 7, 2, 0.1], [1, 1, 1, 1]]), 4)
        for i in range(2):
            for n in range(4):
                if slot[i, n] >= 0:
                    value = got[i, slot[i, n]]
                    assert_same("value", value, features[i, n])
                    assert_same("sign", value.signbit(), features[i, n].signbit())


def test_what_is_dropped_or_empty_leaves_no_trace():
    features, slot, weight, size, slots = case(2)
    features[slot == -1] = torch.nan
    size[slot == -1] = torch.nan
    slot[slot == 3] = 2
    for w in (None, weight):
        got = merge(features, slot, w, size, slots)
        assert got.isfinite().all()
        assert (got[:, 3] == 0).all()


def test_pictures_do_not_mix_and_runs_repeat():
    args = features, slot, weight, size, slots = case(3, 500, 7)
    for w in (None, weight):
        got = merge(features, slot, w, size, slots)
        assert_same("again", merge(features, slot, w, size, slots), got)
        for i in range(3):
            one = (t if not isinstance(t, torch.Tensor) else t[i : i + 1] for t in (features, slot, w, size, slots))
            assert_same(f"picture {i} alone", merge(*one)[0], got[i])
    assert len(args) == 5


@pytest.mark.parametrize("weighted", [False, True])
def test_gradient(weighted):
    features, slot, weight, size, slots = case(4, 9, 3, torch.float64)
    slot[slot == 1] = -1  # an empty slot too
    features.requires_grad_()
    weight.requires_grad_()
    if weighted:
        assert torch.autograd.gradcheck(lambda f, w: merge(f, slot, w, size, slots), (features, weight))
    else:
        assert torch.autograd.gradcheck(lambda f: merge(f, slot, None, size, slots), features)
