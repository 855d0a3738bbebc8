"""Low rank: the authors' errors, the exact curve, quantized residuals, bad input."""

import pytest
import torch

from tests.weights.golden import cases, output_error
from vtc.errors import WeightsError
from vtc.weights.fitting.gram import Gram
from vtc.weights.fitting.lowrank import rank_curve, refit, spectrum, whitened
from vtc.weights.passes import registry
from vtc.weights.passes.base import Candidate

LOW_RANK = ("svd", "asvd", "svdllm", "bolaco")


def layer(out=24, width=32, tokens=128, seed=0, dead=0, scale=1.0):
    """A weight of decaying spectrum, inputs that correlate and have a mean."""
    g = torch.Generator().manual_seed(seed)
    weight = (
        torch.randn(out, out, generator=g) @ torch.diag(0.8 ** torch.arange(out)) @ torch.randn(out, width, generator=g)
    )
    x = torch.randn(tokens, width, generator=g) @ torch.randn(width, width, generator=g) + torch.randn(
        width, generator=g
    )
    x[:, :dead] = 0
    return Candidate(weight * scale, Gram.of(x)), x


@pytest.mark.parametrize("case, inputs, wanted", cases("svdllm"))
def test_svdllm_is_its_authors(case, inputs, wanted):
    weight, x = inputs["W"], inputs["X"]
    got = registry["svdllm"](keep=case["hyper"]["keep_ratio"]).fit(Candidate(weight, Gram.of(x)))
    (term, tensors) = got.parts[0]
    assert term.rank == case["hyper"]["rank"]
    assert output_error(weight, got.approximation, x) <= case["rel_output_error"] * 1.001
    alive = (x != 0).any(0)
    close = (got.approximation - wanted["W_hat"])[:, alive].abs().max()
    assert close <= 2e-3 * weight.abs().max()
    values = spectrum(weight, Gram.of(x))
    assert torch.allclose(values, wanted["singular_values_WL"], rtol=1e-3, atol=1e-3 * values[0])


@pytest.mark.parametrize("case, inputs, wanted", cases("svdllm"))
def test_the_update_is_its_authors(case, inputs, wanted):
    from tests.weights.golden import arrays

    weight, x = inputs["W"].double(), inputs["X"].double()
    perturbed = arrays(case["inputs"].replace("inputs_", "inputs_perturbed_"))["X_perturbed"].double()
    u, v = whitened(weight, Gram.of(x).moment, case["hyper"]["rank"])
    after = refit(v, perturbed, x @ weight.T)
    errors = [float((x @ weight.T - perturbed @ (f @ v).T).norm() / (x @ weight.T).norm()) for f in (u, after)]
    assert errors[0] == pytest.approx(case["rel_output_error_perturbed_before"], rel=1e-3)
    assert errors[1] <= case["rel_output_error_perturbed_after_update"] * 1.001
    assert errors[1] < errors[0]


@pytest.mark.parametrize("case, inputs, wanted", cases("asvd"))
def test_asvd_is_its_authors(case, inputs, wanted):
    weight, x, hyper = inputs["W"], inputs["X"], case["hyper"]
    options = dict(alpha=hyper["alpha"], by=hyper["method"].removeprefix("abs_"), keep=hyper["param_ratio"])
    got = registry["asvd"](**options).fit(Candidate(weight, Gram.of(x)))
    error = output_error(weight, got.approximation, x)
    assert got.parts[0][0].rank == hyper["rank"]
    assert error == pytest.approx(case["rel_output_error_exact_svd"], abs=1e-3)
    assert error <= max(case["rel_output_error_seeds0to4"]) * 1.01


@pytest.mark.parametrize("dead", [0, 3])
@pytest.mark.parametrize("shape", [(24, 32), (32, 24), (1, 16), (16, 16)])
def test_the_curve_says_the_error_of_every_rank(shape, dead):
    given, _ = layer(*shape, dead=dead)
    curve = rank_curve(given.weight, given.gram)
    assert len(curve) == min(shape) + 1 and curve[0] == 1 and curve[-1] == 0
    for rank in range(1, min(shape) + 1):
        u, v = whitened(given.weight, given.gram.moment, rank)
        assert abs(given.gram.error(given.weight.double() - u @ v, given.weight) - float(curve[rank])) <= 1e-9
        assert registry["svdllm"](rank=rank).fit(given).error == pytest.approx(float(curve[rank]), abs=1e-6)


def test_fewer_tokens_than_inputs():
    given, x = layer(tokens=5)
    got = registry["svdllm"](rank=5).fit(given)
    assert got.error < 1e-9  # five tokens span five directions
    assert torch.isfinite(got.approximation).all() and got.approximation.abs().max() < 10 * given.weight.abs().max()


def test_svdllm_has_the_least_error_and_bolaco_keeps_what_varies():
    given, x = layer()
    fitted = {name: registry[name](rank=6).fit(given) for name in LOW_RANK}
    assert min(fitted, key=lambda name: fitted[name].error) == "svdllm"
    centred = Gram.of(x - x.mean(0))
    varies = {name: centred.error(fit.rest, given.weight) for name, fit in fitted.items()}
    assert min(varies, key=lambda name: varies[name]) == "bolaco"


@pytest.mark.parametrize("name", LOW_RANK)
def test_a_low_rank_joins_a_quantized_matrix_in_either_order(name):
    given, _ = layer(width=64)
    low, ints = registry[name](rank=4), registry["gptq"](bits=3, group=32)
    alone = ints.fit(given)
    after = low.fit(alone)
    before = ints.fit(low.fit(given))
    assert after.error < alone.error and before.error < alone.error
    assert [t.kind for t, _ in after.all_parts] == [t.kind for t, _ in before.all_parts] == ["ints", "lowrank"]
    assert after.bytes == alone.bytes + 4 * 4 * (24 + 64)


@pytest.mark.parametrize("name", LOW_RANK)
def test_keep_is_a_share_of_the_bytes(name):
    given, _ = layer(24, 32)
    got = registry[name](keep=0.5).fit(given)
    assert got.parts[0][0].rank == 24 * 32 // 2 // 56
    assert got.bytes <= 0.5 * given.weight.numel() * 4
    assert got.flops == 2 * got.parts[0][0].rank * 56


@pytest.mark.parametrize("options", [dict(rank=4, keep=0.5), dict(rank=0), dict(rank=2.5), dict(rank=True)])
@pytest.mark.parametrize("name", LOW_RANK)
def test_malformed_ranks_are_refused(name, options):
    with pytest.raises(WeightsError, match="rank"):
        registry[name](**options)


@pytest.mark.parametrize("keep", [0, -0.1, 1.5, "half"])
def test_malformed_shares_are_refused(keep):
    with pytest.raises(WeightsError, match="keep"):
        registry["svdllm"](keep=keep)


def test_malformed_scaling_is_refused():
    for options in (dict(alpha=-1), dict(alpha=9), dict(by="median")):
        with pytest.raises(WeightsError, match="alpha|by"):
            registry["asvd"](rank=4, **options)


@pytest.mark.parametrize("name", LOW_RANK)
def test_ranks_beyond_the_layer_are_refused_with_their_bounds(name):
    given, _ = layer(24, 32)
    with pytest.raises(WeightsError, match="25 is not between 1 and 24"):
        registry[name](rank=25).fit(given)
    with pytest.raises(WeightsError, match="the least is 0.0729"):
        registry[name](keep=0.05).fit(given)


@pytest.mark.parametrize("name", LOW_RANK)
def test_weights_that_are_not_finite_are_refused(name):
    given, _ = layer()
    given.weight[3, 4] = float("nan")
    with pytest.raises(WeightsError, match="not finite"):
        registry[name](rank=4).fit(given)


@pytest.mark.parametrize("name", [n for n in LOW_RANK if n != "svd"])
def test_a_layer_that_saw_no_token_is_refused(name):
    given, _ = layer()
    with pytest.raises(WeightsError, match="no calibration token"):
        registry[name](rank=4).fit(Candidate(given.weight, Gram.empty(32)))


@pytest.mark.parametrize("name", LOW_RANK)
def test_zero_weights_stay_zero(name):
    given, _ = layer(scale=0.0)
    got = registry[name](rank=4).fit(given)
    assert got.error == 0 and not got.approximation.any()
