"""The passes made for differences of weights: Delta-CoMe against its authors, BitDelta, their stored forms."""

import pytest
import torch

from tests.weights.fitting.test_lowrank import layer
from tests.weights.golden import cases, output_error
from vtc.errors import WeightsError
from vtc.weights.codec.linear import CompressedLinear
from vtc.weights.codec.terms import read_term
from vtc.weights.codec.terms.signs import Signs
from vtc.weights.codec.terms.vectors import Vectors
from vtc.weights.fitting.gram import Gram
from vtc.weights.passes import deltacome, registry
from vtc.weights.passes.base import Candidate
from vtc.weights.passes.deltacome import DeltaCoMe


def bands_of(case):
    """The options of a golden case."""
    hyper = case["hyper"]
    bands = tuple((bits, stop - start) for bits in hyper["bits"] for start, stop in [hyper["columns"][str(bits)]])
    return dict(bands=bands, payload=None, group=max(hyper["group_size"], 0), act_order=hyper["act_order"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("case, inputs, wanted", cases("deltacome"))
def test_deltacome_is_its_authors(case, inputs, wanted, dtype):
    delta, x = wanted["delta"], inputs["X"]
    got = DeltaCoMe(**bands_of(case)).fit(Candidate(delta, Gram.of(x), dtype))
    assert output_error(delta, got.approximation, x) <= case["rel_delta_output_error"] * 1.01
    term, tensors = got.parts[0]
    codes = sum(t.numel() for name, t in tensors.items() if name[1:].isdigit())
    rounding = sum(delta.shape[0] + count for _, count in term.bands)  # each row of codes ends on a whole byte
    assert codes <= case["payload_bits_per_weight"] * delta.numel() / 8 + rounding
    assert set(term.shapes(*delta.shape, dtype)) == set(tensors)


@pytest.mark.parametrize("case, inputs, wanted", cases("deltacome"))
def test_with_the_authors_signs_the_errors_are_theirs(case, inputs, wanted, monkeypatch):
    delta, x = wanted["delta"], inputs["X"]

    def theirs(u):
        products = u.T @ wanted["U"].double()  # near 1 or -1 where both are the same component
        return products.gather(1, products.abs().argmax(1, keepdim=True))[:, 0].sign()

    monkeypatch.setattr(deltacome, "orientation", theirs)
    got = DeltaCoMe(**bands_of(case)).fit(Candidate(delta, Gram.of(x)))
    assert output_error(delta, got.approximation, x) == pytest.approx(case["rel_delta_output_error"], rel=1e-3)


@pytest.mark.parametrize(
    "pass_", [registry["bitdelta"](), DeltaCoMe(payload=4.0, group=16), DeltaCoMe(act_order=False)]
)
@pytest.mark.parametrize("shape", [(24, 33), (40, 16), (16, 40)])
def test_what_is_stored_is_what_is_computed(pass_, shape):
    given, x = layer(*shape, dead=2)
    got = pass_.fit(given)
    stored = CompressedLinear.filled(shape[1], shape[0], got.all_parts, None, given.weight)
    assert torch.equal(stored.weight, got.approximation)
    assert stored(x).sub(x @ got.approximation.T).abs().max() <= 1e-4 * x.abs().max() * given.weight.abs().max()
    assert [read_term(term.written()) for term in stored.terms] == list(stored.terms)
    assert got.bytes == sum(t.numel() * t.element_size() for t in stored.buffers())
    for term, tensors in got.all_parts:
        wanted = term.shapes(*shape, torch.float32)
        assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == wanted


def test_bitdelta_is_signs_and_the_mean_size():
    given, _ = layer(8, 12)
    got = registry["bitdelta"]().fit(given)
    assert torch.allclose(got.approximation, given.weight.sign() * given.weight.abs().mean())
    assert got.bytes == 8 * 2 + 4 and isinstance(got.parts[0][0], Signs)


def test_mixed_precision_beats_its_rivals_at_one_bit_a_weight():
    given, _ = layer(96, 128, tokens=512)
    mixed = DeltaCoMe(group=128).fit(given)
    signs = registry["bitdelta"]().fit(given)
    low = registry["svd"](rank=max(1, mixed.bytes // (4 * (96 + 128)))).fit(given)
    assert mixed.error < low.error < signs.error


def test_bands_end_where_the_payload_and_the_rank_do():
    small = DeltaCoMe(bands=((8, 2), (3, 4), (2, None)), payload=2.0)
    assert small.cut(64, 64, most=64) == ((8, 2), (3, 4), (2, 18))
    assert small.cut(64, 64, most=5) == ((8, 2), (3, 3))
    assert DeltaCoMe(bands=((8, 2), (2, None)), payload=None).cut(64, 64, most=64) == ((8, 2), (2, 62))
    given, _ = layer(24, 32)
    lora = Candidate(torch.randn(24, 3) @ torch.randn(3, 32), given.gram)
    got = DeltaCoMe(bands=((8, None),), payload=None).fit(lora)
    assert isinstance(got.parts[0][0], Vectors) and got.parts[0][0].rank == 3 and got.error < 1e-3


def test_a_zero_difference_stays_zero():
    given, _ = layer(scale=0.0)
    for pass_ in (registry["bitdelta"](), DeltaCoMe(payload=None)):
        assert not pass_.fit(given).approximation.any()


@pytest.mark.parametrize(
    "options",
    [
        dict(bands=()),
        dict(bands=7),
        dict(bands=(8, 2)),
        dict(bands=((5, 2),)),
        dict(bands=((8, 0),)),
        dict(payload=0),
        dict(payload=99),
        dict(group=-1),
    ],
)
def test_malformed_options_are_refused(options):
    with pytest.raises(WeightsError):
        DeltaCoMe(**options)


def test_a_payload_too_small_names_the_least():
    given, _ = layer(24, 32)
    with pytest.raises(WeightsError, match="the least is 0.1458"):
        DeltaCoMe(payload=0.1).fit(given)


def test_differences_that_cannot_be_fitted_are_refused():
    given, _ = layer()
    with pytest.raises(WeightsError, match="no calibration token"):
        DeltaCoMe().fit(Candidate(given.weight, Gram.empty(32)))
    given.weight[0, 0] = float("inf")
    for pass_ in (registry["bitdelta"](), DeltaCoMe()):
        with pytest.raises(WeightsError, match="not finite"):
            pass_.fit(given)
