"""torch's int4 kernel: the same product as the dense weight, only where it can serve, never with stale weights."""

import pytest
import torch

from vtc.weights.codec import kernels as fast
from vtc.weights.codec.linear import CompressedLinear
from vtc.weights.fitting.gram import Gram
from vtc.weights.passes import registry
from vtc.weights.passes.base import Candidate

CPU = "cpu"
needs_kernel = pytest.mark.skipif(not fast.works(fast.Int4, CPU), reason="this torch has no int4 kernel for CPUs")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def compressed(out=64, width=128, group=32, name="rtn", dtype=torch.bfloat16, seed=0, **options):
    weight = torch.randn(out, width, generator=torch.Generator().manual_seed(seed)).to(dtype)
    pass_ = registry[name](bits=4, group=group, **options)
    done = pass_.fit(Candidate(weight.float(), Gram.empty(width), dtype))
    return CompressedLinear.filled(width, out, done.all_parts, torch.randn(out).to(dtype), weight)


def inputs(rows, width=128, dtype=torch.bfloat16):
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(1)).to(dtype)


def by_hand(layer, x):
    return x.float() @ layer.weight.float().T + layer.bias.float()


@needs_kernel
@pytest.mark.parametrize("rows", [1, 3, fast.ROWS, fast.ROWS + 1])
@pytest.mark.parametrize("group", [32, 64, 0])
def test_the_kernel_computes_what_the_weight_does(rows, group):
    layer, x = compressed(group=group), inputs(rows)
    with torch.no_grad():
        got = layer(x)
    assert bool(layer._packed) == (rows <= fast.ROWS)
    want = by_hand(layer, x)
    assert (got.float() - want).norm() <= 0.01 * want.norm()


@needs_kernel
@pytest.mark.parametrize(
    "layer, x",
    [
        (compressed(out=24), inputs(1)),
        (compressed(group=16), inputs(1)),
        (compressed(width=100, group=32), inputs(1, 100)),
        (compressed(symmetric=False), inputs(1)),
        (compressed(dtype=torch.float32), inputs(1, dtype=torch.float32)),
    ],
)
def test_what_the_kernel_cannot_serve_goes_through_the_weight(layer, x):
    with torch.no_grad():
        got = layer(x)
    assert not layer._packed
    want = by_hand(layer, x)
    assert (got.float() - want).norm() <= 0.01 * want.norm()


@needs_kernel
def test_gradients_and_new_weights():
    layer, x = compressed(), inputs(2).requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None and not layer._packed
    with torch.no_grad():
        layer(inputs(2))
        layer.load_state_dict(compressed(seed=9).state_dict())
        want = by_hand(layer, inputs(2))
        assert (layer(inputs(2)).float() - want).norm() <= 0.01 * want.norm()
    assert not [name for name in layer.state_dict() if "packed" in name]


def test_a_kernel_that_computes_something_else_is_not_used(monkeypatch):
    class Wrong(fast.Int4):
        @staticmethod
        def multiply(x, packed, group):
            return 1.1 * fast.Int4.multiply(x, packed, group)

    monkeypatch.setattr(fast, "KERNELS", (Wrong,))
    assert not fast.works(Wrong, CPU)
    layer = compressed()
    with torch.no_grad():
        layer(inputs(1))
    assert not layer._packed


@pytest.mark.parametrize(
    "kernel, layer",
    [
        (fast.Int4Cuda, compressed(width=256, group=128)),
        (fast.TwoOfFour, compressed(width=256, group=128, name="sparsegpt", pattern="2:4")),
    ],
)
def test_a_kernel_of_another_device_is_not_asked(monkeypatch, kernel, layer):
    asked = layer.terms[0], layer.tensors(0), inputs(1, 256), 64, 256
    monkeypatch.setattr(fast, "KERNELS", (kernel,))
    monkeypatch.setattr(fast, "works", lambda *args: True)
    assert fast.kernel_for(*asked) is None
    monkeypatch.setattr(kernel, "device", CPU)
    assert fast.kernel_for(*asked) is kernel


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bits", [0, 4])
def test_weights_pruned_2_4_are_multiplied_in_their_own_dtype(monkeypatch, dtype, bits):
    """As a float32 model under autocast asks: inputs in bfloat16, and a kernel that keeps the weight's dtype."""

    class OnCpu(fast.TwoOfFour):
        device = CPU

        @staticmethod
        def pack(term, tensors, out, width):
            return term.dense(tensors, out, width)

    pass_ = registry["sparsegpt"](pattern="2:4", bits=bits)
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).to(dtype)
    parts = pass_.fit(Candidate(weight.float(), Gram.empty(128), dtype)).all_parts
    layer, x = CompressedLinear.filled(128, 64, parts, None, weight), inputs(3)
    monkeypatch.setattr(fast, "KERNELS", (OnCpu,))
    with torch.no_grad():
        got = layer(x)
    assert bool(layer._packed) == (dtype == torch.bfloat16)
    want = x.float() @ layer.weight.float().T
    assert (got.float() - want).norm() <= 0.01 * want.norm()


@needs_gpu
@pytest.mark.parametrize("kernel", [fast.Int4Cuda, fast.TwoOfFour])
def test_a_gpu_has_the_kernels(kernel):
    assert fast.works(kernel, "cuda")


@needs_gpu
@pytest.mark.parametrize("name, options", [("rtn", {}), ("sparsegpt", {"pattern": "2/4"})])
def test_on_a_gpu_the_kernels_compute_what_the_weight_does(name, options):
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    made = registry[name](**options) if options else registry[name](bits=4, group=128)
    parts = made.fit(Candidate(weight.float(), Gram.empty(256), torch.bfloat16)).all_parts
    layer = CompressedLinear.filled(256, 64, parts, None, weight).cuda()
    x = inputs(3, 256).cuda()
    with torch.no_grad():
        got = layer(x).float()
    assert layer._packed
    want = x.float() @ layer.weight.float().T
    assert (got - want).norm() <= 0.01 * want.norm()
