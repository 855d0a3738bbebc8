"""What every pass over one layer owes, on good layers and bad ones."""

from dataclasses import fields, replace

import pytest
import torch

from tests.own import walked
from tests.weights.layers import inputs, layer
from vtc.errors import WeightsError
from vtc.weights.codec.linear import CompressedLinear
from vtc.weights.codec.terms import read_term
from vtc.weights.codec.terms.low_rank import LowRank
from vtc.weights.fitting.gram import Gram
from vtc.weights.passes import registry
from vtc.weights.passes._structure import StructuredPass

FITTED = [
    name for name in walked(registry) if not issubclass(registry[name], StructuredPass)
]  # those fit no single layer


def dead_columns():
    x = inputs()
    x[:, 3:9] = 0
    return replace(layer(), gram=Gram.of(x))


def beside_low_rank():
    u, v = torch.randn(48, 4), torch.randn(4, 64)
    return layer().with_part(LowRank(4), {"u": u, "v": v})


def pruned():
    return replace(layer(), mask=torch.arange(64) % 3 > torch.zeros(48, 1))


LAYERS = {
    "plain": layer,
    "bfloat16": lambda: layer(dtype=torch.bfloat16),
    "float16": lambda: layer(dtype=torch.float16),
    "dead columns": dead_columns,
    "singular moment": lambda: layer(tokens=5),
    "one row": lambda: layer(out=1),
    "a width no group divides": lambda: layer(width=150),
    "one input": lambda: layer(width=1),
    "weights of zero": lambda: replace(layer(), weight=torch.zeros(48, 64)),
    "no token": lambda: replace(layer(), gram=Gram.empty(64)),
    "pruned": pruned,
    "beside a low rank": beside_low_rank,
}


# A low rank saves nothing on one row or input, and some need a calibration that reached the layer.
REFUSABLE = ("one row", "one input", "no token")


@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize("kind", LAYERS)
def test_what_is_stored_is_what_runs(name, kind):
    given = LAYERS[kind]()
    before = given.weight.clone()
    try:
        done = registry[name]().fit(given)
    except WeightsError:  # said, not silently done worse
        assert kind in REFUSABLE
        return
    assert torch.equal(given.weight, before) and given.matrix is None
    assert torch.isfinite(done.approximation).all() and done.error <= 1.5 * max(given.error, 1.0)
    for term, tensors in done.all_parts:
        shapes = term.shapes(*given.weight.shape, given.dtype)
        assert {n: (tuple(t.shape), t.dtype) for n, t in tensors.items()} == shapes
        assert read_term(term.written()) == term
    out, width = given.weight.shape
    ran = CompressedLinear.filled(width, out, done.all_parts, None, given.weight.to(given.dtype))
    assert torch.equal(ran.weight.float(), sum(t.dense(p, out, width) for t, p in done.all_parts).float())
    x = inputs(7, width).to(given.dtype)
    assert torch.allclose(
        ran(x).float(), (x.float() @ done.approximation.T), rtol=0.05, atol=0.05 * float(x.abs().max())
    )


@pytest.mark.parametrize("name", FITTED)
def test_a_pruned_weight_stays_pruned(name):
    given = pruned()
    matrix = replace(registry[name]().fit(given), parts=())
    assert matrix.matrix is None or not matrix.approximation[~given.mask].any()


@pytest.mark.parametrize("name", FITTED)
def test_the_same_twice(name):
    one, other = (registry[name]().fit(layer()) for _ in range(2))
    assert torch.equal(one.approximation, other.approximation) and one.bytes == other.bytes


@pytest.mark.parametrize(
    ("name", "flag"),
    [(n, f.name) for n in walked(registry) for f in fields(registry[n]) if isinstance(f.default, bool)],
)
def test_a_flag_that_is_a_word_is_refused(name, flag):
    with pytest.raises(WeightsError, match=f"{flag} must be true or false"):
        registry[name](**{flag: "no"})


@pytest.mark.parametrize("name", [name for name in FITTED if not registry[name].needs_gram])
def test_a_pass_that_needs_no_calibration_looks_at_none(name):
    given = layer()
    without = registry[name]().fit(replace(given, gram=Gram.empty(1)))
    assert torch.equal(without.approximation, registry[name]().fit(given).approximation)
