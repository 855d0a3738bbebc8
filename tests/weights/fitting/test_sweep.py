"""GPTQ and SparseGPT against their authors' results."""

import pytest
import torch

from tests.weights.golden import cases, output_error
from tests.weights.layers import layer
from vtc.weights.fitting.gram import Gram
from vtc.weights.fitting.sweep import Rule, sweep
from vtc.weights.passes import registry
from vtc.weights.passes.base import Candidate

GPTQ = {
    "gptq_w4g32_sym": dict(bits=4, group=32),
    "gptq_w3g32_sym": dict(bits=3, group=32),
    "gptq_w3_perchannel_sym": dict(bits=3, group=0),
    "gptq_w4g32_asym": dict(bits=4, group=32, symmetric=False),
    "llmc_gptq_w4g32_sym": dict(bits=4, group=32),
    "llmc_gptq_w3g32_sym": dict(bits=3, group=32),
    "llmc_gptq_w8_perchannel_sym": dict(bits=8, group=0),
}
SPARSE = {
    "sparsegpt_50": dict(sparsity=0.5),
    "sparsegpt_2of4": dict(pattern="2:4"),
    "sparsegpt_50_w4": dict(sparsity=0.5, bits=4, group=0, symmetric=False),
}


def check(name, options, case, inputs, wanted):
    weight, x = inputs["W"], inputs["X"]
    got = registry[name](**options).fit(Candidate(weight, Gram.of(x)))
    close = (got.approximation - wanted["W_hat"]).abs() <= 1e-4 * weight.abs().max()
    assert close.float().mean() >= 0.95
    assert output_error(weight, got.approximation, x) <= case["rel_output_error"] * 1.01
    assert got.error**0.5 == pytest.approx(output_error(weight, got.approximation, x), rel=1e-3)
    return got


@pytest.mark.parametrize(
    "case, inputs, wanted",
    cases("gptq", *[c for c in GPTQ if c.startswith("gptq")])
    + cases("llmc_gptq", *[c for c in GPTQ if c.startswith("llmc")]),
)
def test_gptq_is_its_authors(case, inputs, wanted):
    check("gptq", GPTQ[case["configuration"]], case, inputs, wanted)


@pytest.mark.parametrize("case, inputs, wanted", cases("sparsegpt", *SPARSE))
def test_sparsegpt_is_its_authors(case, inputs, wanted):
    got = check("sparsegpt", SPARSE[case["configuration"]], case, inputs, wanted)
    differ = ((got.approximation == 0) != wanted["pruned_mask"]).float().mean()
    assert differ <= 0.005


BLOCKS = {
    "gptq_w4g32_sym_block32": Rule(bits=4, group=32, block=32),
    "gptq_w4g32_sym_static_block32": Rule(bits=4, group=32, static=True, block=32),
    "sparsegpt_50_block32": Rule(sparsity=0.5, block=32),
    "sparsegpt_2of4_block32": Rule(pattern=(2, 4), block=32),
}


@pytest.mark.parametrize(
    "case, inputs, wanted",
    cases("gptq", *[c for c in BLOCKS if c.startswith("gptq")])
    + cases("sparsegpt", *[c for c in BLOCKS if c.startswith("sparse")]),
)
def test_blocks_of_32_are_their_authors(case, inputs, wanted):
    weight, x = inputs["W"], inputs["X"]
    gram = Gram.of(x)
    got = sweep(weight, gram.damped(), gram.dead, BLOCKS[case["configuration"]])
    close = (got.values - wanted["W_hat"]).abs() <= 1e-4 * weight.abs().max()
    assert close.float().mean() >= 0.95
    assert output_error(weight, got.values, x) <= case["rel_output_error"] * 1.01
    if "pruned_mask" in wanted:
        assert (~got.mask != wanted["pruned_mask"]).float().mean() <= 0.005


@pytest.mark.parametrize("bits", [0, 4])
def test_a_pattern_after_pruning_brings_nothing_back(bits):
    gone = torch.arange(64) % 4 < 3
    given = layer()
    rule = Rule(bits=bits, symmetric=False, pattern=(2, 4), mask=(~gone).expand(48, 64))
    got = sweep(given.weight, given.gram.damped(), given.gram.dead, rule)
    assert not got.values[:, gone].any() and got.values[:, ~gone].any(0).all()
    assert (got.mask.view(48, 16, 4).sum(-1) == 2).all()
    if bits:
        stored = got.scale * (got.codes - got.zero) * got.mask
        assert torch.equal(stored, got.values)


def test_every_width_is_stored_in_its_bits_and_nearer_than_the_one_before():
    done = [registry["gptq"](bits=bits).fit(layer()) for bits in range(2, 9)]
    sizes = [8 * each.all_parts[0][1]["codes"].numel() for each in done]
    assert sizes == [bits * layer().weight.numel() for bits in range(2, 9)]
    errors = [each.error for each in done]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-3 * errors[0]
