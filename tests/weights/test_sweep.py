"""GPTQ and SparseGPT against their authors' results."""

import pytest

from tests.weights.golden import cases, output_error
from vtc.weights.gram import Gram
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
