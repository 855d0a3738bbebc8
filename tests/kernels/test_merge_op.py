"""The merge as an operation: kernel or reference, whichever ``VTC_KERNELS`` picks (see test_interpreter.py)."""

import pytest
import torch

from tests.engine.test_merge import case, merge_reference
from tests.tolerances import TOL, assert_close, assert_same
from tests.versions import before
from vtc.kernels.dispatch import interpreted
from vtc.kernels.merge import merge

NARROW = [t for t in TOL if t != torch.float64]


def wide_case(width, tokens=9, slots=5, dtype=torch.float32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(2, tokens, width, generator=draw, dtype=torch.float64).to(dtype)
    slot = torch.randint(-1, slots, (2, tokens), generator=draw)
    size = torch.randint(1, 9, (2, tokens), generator=draw).float()
    return features, slot, torch.randn(2, tokens, generator=draw), size, slots


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("width", [1, 5, 80, 1100])
def test_kernel_equals_float64(width, dtype, weighted):
    features, slot, weight, size, slots = wide_case(width, dtype=dtype)
    weight = weight if weighted else None
    got = merge(features, slot, weight, size, slots)
    assert got.dtype == dtype
    assert_close("merged", got, merge_reference(features, slot, weight, size, slots).to(dtype))
    assert_same("again", merge(features, slot, weight, size, slots), got)


@pytest.mark.parametrize("weighted", [False, True])
def test_kernel_sums_a_slot_of_many_tokens(weighted):
    """Slots of 0, 1, 64, 65 and 200 tokens: one program or several."""
    counts = torch.tensor([64, 0, 200, 1, 65])
    slot = torch.arange(5).repeat_interleave(counts)[torch.randperm(330, generator=torch.Generator().manual_seed(1))]
    slot = torch.stack([slot, torch.full((330,), 3)])
    features, _, weight, size, _ = wide_case(3, 330)
    weight = weight if weighted else None
    got = merge(features, slot, weight, size, 5)
    assert_close("merged", got, merge_reference(features, slot, weight, size, 5).float())
    assert_same("again", merge(features, slot, weight, size, 5), got)


def test_kernel_keeps_the_bits_of_a_token_alone():
    features = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-7, -1e-7, 3.14]).expand(1, 3, 8)
    for dtype in NARROW:
        for weight in (None, torch.ones(1, 3)):
            got = merge(features.to(dtype), torch.tensor([[2, -1, 0]]), weight, torch.tensor([[3.0, 7, 0.1]]), 3)
            for s in (0, 2):
                assert_same("value", got[0, s], features[0, 0].to(dtype))
                if not (before("triton", 3, 9) and interpreted()):  # older interpreters lose the sign of -0.0
                    assert_same("sign", got[0, s].signbit(), features[0, 0].to(dtype).signbit())


def test_kernel_without_tokens():
    features, slot, weight, size, slots = wide_case(6)
    features = features * torch.nan
    for w in (None, weight):
        assert (merge(features, torch.full_like(slot, -1), w, size, slots) == 0).all()
        assert merge(features[:, :0], slot[:, :0], None if w is None else w[:, :0], size[:, :0], 2).shape == (2, 2, 6)
        assert merge(features, torch.full_like(slot, -1), w, size, 0).shape == (2, 0, 6)


def test_kernel_takes_strides_of_any_kind():
    features, slot, _, size, slots = wide_case(6)
    want = merge(features, slot, None, size, slots)
    assert_same("columns first", merge(features.mT.contiguous().mT, slot, None, size, slots), want)
    assert_same("every second", merge(features.repeat_interleave(2, 1)[:, ::2], slot, None, size, slots), want)
    one = features[:1, :1].expand(2, 9, -1)
    slot, size = slot[:1].expand(2, -1), size[:, :1].expand(-1, 9)
    assert_close("stride 0", merge(one, slot, None, size, slots), merge(one.clone(), slot.clone(), None, size, slots))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", NARROW)
def test_kernel_gradient_is_that_of_float64(dtype, weighted):
    features, slot, weight, size, slots = wide_case(40, dtype=dtype, seed=2)
    found = []
    for kind in (dtype, torch.float64):
        x, w = (t.to(kind).detach().clone().requires_grad_() for t in (features, weight))
        out = merge(x, slot, w if weighted else None, size, slots)
        out.backward(torch.linspace(-1, 1, 40, dtype=torch.float64).to(dtype).to(kind).expand_as(out))  # stride 0
        found.append((x.grad, w.grad))
    assert_close("by features", found[0][0], found[1][0].to(dtype))
    if weighted:
        assert_close("by weight", found[0][1].to(dtype), found[1][1].to(dtype))
    assert (found[0][0][slot == -1] == 0).all()


def test_kernel_gradient_of_a_nan_that_was_dropped_is_zero():
    features, slot, weight, size, slots = wide_case(5)
    features[slot == -1] = torch.nan
    features.requires_grad_(), weight.requires_grad_()
    merge(features, slot, weight, size, slots).sum().backward()
    assert features.grad.isfinite().all() and weight.grad.isfinite().all()


@pytest.mark.parametrize("mean", [False, True])
def test_kernel_opcheck(mean):
    features, slot, weight, size, slots = wide_case(4)
    weight = size if mean else weight.requires_grad_()
    torch.library.opcheck(torch.ops.vtc.merge.default, (features.requires_grad_(), slot, weight, slots, mean))
    share = torch.rand(2, 9)
    grad = torch.randn(2, slots, 4)
    torch.library.opcheck(torch.ops.vtc.merge_backward.default, (grad, features.detach(), slot, share))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_many_tokens(seed):
    features, slot, weight, size, slots = case(seed, 700, 40)
    for w in (None, weight.float()):
        got = merge(features, slot, w, size, slots)
        assert_close("merged", got, merge_reference(features, slot, w, size, slots).float())
