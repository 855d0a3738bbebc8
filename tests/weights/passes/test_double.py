"""Double compression: what the entropy coder makes of it, measured."""

from dataclasses import replace

import pytest
import torch

from tests.weights.layers import layer
from vtc.errors import WeightsError
from vtc.weights.codec.packing import unpack
from vtc.weights.codec.terms.ints import Ints
from vtc.weights.passes import registry
from vtc.weights.planning.rate import coded_bits, curve

pytest.importorskip("zstandard")
double = registry["double"]


def large():
    return layer(out=512, width=256, tokens=512, dtype=torch.bfloat16)


def entropy(codes):
    share = torch.bincount(codes.flatten().int()).double() / codes.numel()
    return float(-(share[share > 0] * share[share > 0].log2()).sum())


def test_coded_bits_are_near_the_entropy_of_the_codes():
    got = double().fit(large())
    codes = got.matrix[1]["codes"]
    beside = 8 * (got.bytes - codes.numel()) / codes.numel()
    assert entropy(codes) < coded_bits(got) < entropy(codes) + beside + 0.15
    assert got.bits == pytest.approx(8 + beside)  # in memory it stays a byte a weight


def test_random_codes_cannot_be_coded():
    codes = torch.randint(0, 256, (512, 256), dtype=torch.uint8)
    noise = large().with_matrix(Ints(8, 0), {"codes": codes, "scale": torch.ones(512, 1).bfloat16()})
    assert coded_bits(noise) > 8


def test_a_mask_and_other_parts_are_counted():
    bare, pruned = double().fit(large()), double().fit(registry["wanda"](sparsity=0.5).fit(large()))
    half = 0.5 * coded_bits(bare)
    assert half + 0.9 < coded_bits(pruned) < half + 1.6  # a bit a weight says where they are


def test_the_curve_falls():
    found = curve(large(), [double(levels=levels) for levels in (127, 63, 31, 15, 7)])
    bits, error = zip(*found, strict=True)
    assert list(bits) == sorted(bits, reverse=True) and list(error) == sorted(error)
    assert all(0.8 < before - after < 1.2 for before, after in zip(bits, bits[1:], strict=False))


def test_rescaling_saves_bits_at_no_more_error():
    (even_bits, even), (bits, error) = curve(large(), [double(alpha=0), double(alpha=0.5)])
    assert bits < even_bits - 1 and error < even


def test_less_error_than_int4_at_the_bytes_that_int4_takes():
    int4 = registry["rtn"](bits=4, group=128).fit(large())
    ((bits, error),) = curve(large(), [double(levels=15)])
    assert bits < int4.bits and error < 0.7 * int4.error


def test_pruned_are_those_of_least_activation_score():
    given = layer()
    got = double(levels=127, sparsity=0.25).fit(given)
    score = given.weight.abs() * given.gram.largest
    gone = torch.zeros(48, 64, dtype=torch.bool).scatter_(1, score.argsort(dim=1)[:, :16], True)
    assert not got.approximation[gone].any()
    assert coded_bits(got) < coded_bits(double(levels=127).fit(given))


def test_codes_stay_within_their_levels():
    codes = unpack(double(levels=5).fit(layer()).matrix[1]["codes"], 8, 64).int() - 128
    assert codes.abs().max() == 5


def test_without_inputs_there_is_nothing_to_rescale_by():
    given = layer()
    blind = replace(given, gram=given.gram.scaled(0))
    assert torch.equal(double().fit(blind).matrix[1]["columns"], torch.ones(64))


@pytest.mark.parametrize(
    "options",
    [
        dict(levels=0),
        dict(levels=128),
        dict(levels=31.0),
        dict(alpha=-0.1),
        dict(alpha=2),
        dict(sparsity=1),
        dict(sparsity="a"),
    ],
)
def test_absurd_options(options):
    with pytest.raises(WeightsError, match="must be a number from"):
        double(**options)
