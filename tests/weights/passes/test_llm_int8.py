"""LLM.int8() against bitsandbytes: codes, outlier columns, and the product they make."""

from dataclasses import replace

import pytest
import torch

from tests.weights.golden import cases, output_error
from tests.weights.layers import inputs, layer
from vtc.errors import WeightsError
from vtc.weights.codec.terms.columns import Columns
from vtc.weights.fitting.gram import Gram
from vtc.weights.passes import registry
from vtc.weights.passes.base import Candidate
from vtc.weights.passes.llm_int8 import vectorwise


@pytest.mark.parametrize("case, inputs, wanted", cases("llmint8"))
def test_codes_and_product_are_those_of_bitsandbytes(case, inputs, wanted):
    a, b = wanted["A_fp16"].float(), wanted["B_fp16"].float()
    threshold = case["hyper"]["threshold"]
    ca, sa, outliers = vectorwise(a, threshold)
    cb, sb, none = vectorwise(b)
    assert torch.equal(outliers, wanted["outlier_cols"]) and not len(none)
    for got, codes in ((ca, wanted["CA"]), (cb, wanted["CB"])):
        assert (got == codes).float().mean() >= 0.998
    assert torch.allclose(127 * sa, wanted["SCA"]) and torch.allclose(127 * sb, wanted["SCB"])
    y = (ca.float() @ cb.float().T) * sa[:, None] * sb + a[:, outliers] @ (cb[:, outliers].float() * sb[:, None]).T
    whole = wanted["Y_fp16"].float()
    assert (y - whole).abs().max() <= 5e-3 * whole.abs().max()


@pytest.mark.parametrize("case, inputs, wanted", cases("llmint8"))
def test_the_pass_keeps_its_columns_and_errs_no_more(case, inputs, wanted):
    weight, x = wanted["B_fp16"].float(), wanted["A_fp16"].float()
    got = registry["llm_int8"](threshold=case["hyper"]["threshold"]).fit(Candidate(weight, Gram.of(x)))
    kept = [tensors["index"].long() for term, tensors in got.parts if isinstance(term, Columns)]
    assert torch.equal(torch.cat([torch.empty(0).long(), *kept]), wanted["outlier_cols"])
    assert output_error(weight, got.approximation, x) <= case["rel_output_error"] * 1.01


def test_outlier_columns_are_as_they_were_and_lower_the_error():
    given = layer()
    threshold = float(given.gram.largest.topk(5).values[-1])
    got = registry["llm_int8"](threshold=threshold).fit(given)
    outliers = got.parts[0][1]["index"].long()
    assert len(outliers) == 5
    assert torch.equal(got.approximation[:, outliers], given.weight[:, outliers])
    assert got.error < 0.5 * registry["llm_int8"](threshold=0).fit(given).error


def test_without_outliers_it_is_a_byte_a_weight_and_a_scale_a_row():
    got = registry["llm_int8"](threshold=1e9).fit(layer())
    assert not got.parts and got.bytes == 48 * 64 + 48 * 4
    assert (got.rest.abs() <= got.weight.abs().amax(1, keepdim=True) / 127 / 2 * 1.001).all()


def test_a_column_of_large_weights_does_not_widen_the_scales():
    given = layer()
    weight = given.weight.clone()
    weight[:, 10] = 1000.0  # the inputs of column 10 are large
    got = registry["llm_int8"](threshold=float(given.gram.largest[10])).fit(replace(given, weight=weight))
    assert got.matrix[1]["scale"].max() < 1


def test_rows_of_zeros():
    codes, scale, outliers = vectorwise(torch.zeros(3, 4), threshold=6.0)
    assert not codes.any() and torch.equal(scale, torch.ones(3)) and not len(outliers)


def test_after_a_second_threshold_nothing_is_counted_twice():
    once = registry["llm_int8"](threshold=30.0).fit(layer())
    twice = registry["llm_int8"](threshold=5.0).fit(once)
    assert torch.allclose(twice.approximation, twice.weight, atol=0.05)


def test_activations_with_every_column_an_outlier():
    codes, _, outliers = vectorwise(inputs() + 100, threshold=6.0)
    assert len(outliers) == 64 and not codes.any()


@pytest.mark.parametrize("threshold", [-1, float("nan"), float("inf"), "6", True, None])
def test_absurd_thresholds(threshold):
    with pytest.raises(WeightsError, match="threshold must be"):
        registry["llm_int8"](threshold=threshold)
