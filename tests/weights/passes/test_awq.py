"""AWQ against its authors' results, and what its parts are for."""

from dataclasses import replace

import pytest
import torch

from tests.weights.golden import cases, output_error
from tests.weights.layers import layer
from vtc.errors import WeightsError
from vtc.weights.fitting.gram import Gram
from vtc.weights.passes import registry
from vtc.weights.passes.awq import clipped
from vtc.weights.passes.base import Candidate

AWQ = {"awq_w4g32": dict(bits=4, group=32), "awq_w3g32": dict(bits=3, group=32), "awq_w4grow": dict(bits=4, group=0)}


@pytest.mark.parametrize("case, inputs, wanted", cases("awq", *AWQ))
def test_awq_is_its_authors(case, inputs, wanted):
    weight, x, options = inputs["W"], inputs["X"], AWQ[case["configuration"]]
    got = registry["awq"](clip=False, **options).fit(Candidate(weight, Gram.of(x)))
    columns = got.matrix[1]["columns"]
    assert torch.allclose(1 / columns, wanted["scales"], rtol=1e-4)  # so the exponent is theirs, too
    assert output_error(weight, got.approximation, x) <= case["rel_output_error"] * 1.01
    if "clip_max" in wanted:
        sampled = (x * columns)[::2]
        cut = clipped(weight / columns, Gram.of(sampled).moment, options["bits"], 32, torch.float32)
        limit = cut.abs().unflatten(1, (-1, 32)).amax(-1, keepdim=True)
        assert ((limit - wanted["clip_max"]).abs() > 1e-4 * limit).float().mean() <= 0.05
        got = registry["awq"](**options).fit(Candidate(weight, Gram.of(x)))
        assert output_error(weight, got.approximation, x) <= case["rel_output_error_clipped"] * 1.01


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_scaling_and_clipping_each_lower_the_error(bits):
    given = layer()
    error = {
        "rtn": registry["rtn"](bits=bits, group=32, symmetric=False).fit(given).error,
        "scaled": registry["awq"](bits=bits, group=32, clip=False).fit(given).error,
        "clipped": registry["awq"](bits=bits, group=32).fit(given).error,
    }
    assert error["clipped"] < error["scaled"] < error["rtn"]


def test_inputs_of_one_size_need_no_scaling():
    given = layer()
    gram = replace(given.gram, absolute=torch.ones(64) * given.gram.count)
    got = registry["awq"](bits=4, group=32, clip=False).fit(replace(given, gram=gram))
    assert torch.equal(got.matrix[1]["columns"], torch.ones(64))
    assert got.error == pytest.approx(registry["rtn"](bits=4, group=32, symmetric=False).fit(given).error)


@pytest.mark.parametrize("options", [dict(bits=5), dict(group=-1), dict(group=32.0)])
def test_absurd_options(options):
    with pytest.raises(WeightsError):
        registry["awq"](**options)
