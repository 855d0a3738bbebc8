"""BitNet's ternary weights against transformers' BitNet code."""

from dataclasses import replace

import pytest
import torch

from tests.weights.golden import cases, output_error
from tests.weights.layers import layer
from vtc.weights.codec.packing import unpack_trits
from vtc.weights.fitting.gram import Gram
from vtc.weights.passes import registry
from vtc.weights.passes.base import Candidate
from vtc.weights.passes.llm_int8 import vectorwise


@pytest.mark.parametrize("case, inputs, wanted", cases("bitnet"))
def test_trits_are_those_of_transformers(case, inputs, wanted):
    weight, x = inputs["W"], inputs["X"]
    got = registry["ternary"]().fit(Candidate(weight, Gram.of(x)))
    trits = unpack_trits(got.matrix[1]["codes"], weight.shape[1])
    assert (trits != wanted["ternary"]).float().mean() <= 0.001
    assert torch.allclose(got.approximation, wanted["W_hat"], rtol=1e-5)
    assert output_error(weight, got.approximation, x) <= case["rel_output_error"] * 1.001
    codes, scale, _ = vectorwise(x)
    assert (codes == wanted["X_codes"]).float().mean() >= 0.999
    y = (codes * scale[:, None]) @ got.approximation.T
    assert torch.allclose(y, wanted["Y"], atol=1e-3 * float(wanted["Y"].abs().max()))


def test_a_weight_that_is_ternary_stays():
    trits = torch.arange(48 * 65).view(48, 65) % 3 - 1.0
    for scale in (torch.tensor([[0.5]]), torch.linspace(0.1, 3, 48)[:, None]):
        given = replace(layer(width=65), weight=trits * scale, mask=trits != 0)
        got = registry["ternary"](rows=len(scale) > 1).fit(given)
        assert torch.allclose(got.approximation, given.weight)
        assert got.bytes == 48 * 13 + 4 * len(scale)


def test_a_scale_a_row_is_no_worse():
    given = layer()
    given = replace(given, weight=given.weight * torch.logspace(-1, 1, 48)[:, None])
    error = {rows: registry["ternary"](rows=rows).fit(given).rest.norm() for rows in (False, True)}
    assert error[True] < error[False]
