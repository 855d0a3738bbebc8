"""Scores and thresholds of structured passes against FLAP's code, and on bad input."""

import pytest
import torch

from tests.weights.golden import cases
from vtc.errors import WeightsError
from vtc.weights.calibration.channel_statistics import Channels, weights_of
from vtc.weights.structure import importance


def seen_by(samples):
    seen = Channels.empty(samples.shape[-1])
    for each in samples:
        seen.add(each)
    return seen


@pytest.mark.parametrize("case, inputs, wanted", cases("flap_layer"))
def test_one_layer_is_flaps(case, inputs, wanted):
    weight, x = inputs["W"], inputs["X"]
    seen = seen_by(x.view(4, 64, -1))
    close = dict(rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(seen.mean, wanted["baseline_inp"], rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(seen.fluctuation, wanted["fluc_inp"], **close)
    torch.testing.assert_close(importance.wifv(seen.fluctuation, weight), wanted["metric_WIFV"], **close)
    torch.testing.assert_close(importance.wifn(seen.square, seen.examples, weight), wanted["metric_WIFN"], **close)
    for share in (20, 50):
        (keep,) = importance.best_of_each([importance.wifv(seen.fluctuation, weight)], [share / 100])
        assert torch.equal(keep, wanted[f"keep_mask_{share}"])
        bias = weight[:, ~keep] @ seen.mean[~keep]
        torch.testing.assert_close(bias, wanted[f"bias_{share}"], rtol=0, atol=1e-4)
        lost = x.double() @ weight.double().T - (x[:, keep].double() @ weight[:, keep].double().T + bias.double())
        error = float(lost.norm() / (x.double() @ weight.double().T).norm())
        assert error <= case[f"rel_output_error_{share}"] * 1.001


@pytest.mark.parametrize("case, inputs, wanted", cases("flap_model"))
def test_one_threshold_over_all_layers_is_flaps(case, inputs, wanted):
    told = case["hyper"]
    width, weights, seen, scores = told["head_size"], [], [], []
    for n in range(told["layers"]):
        for kind, samples in (("o", wanted[f"o_proj_in_{n}"]), ("d", wanted[f"down_in_{n}"])):
            at, weight = seen_by(samples), wanted[f"W{kind}_{n}"]
            wifn = told["metric"] == "WIFN"
            score = importance.wifn(at.square, at.examples, weight) if wifn else importance.wifv(at.fluctuation, weight)
            seen.append(at)
            weights.append(weight)
            scores.append(score.square() if kind == "o" else score)
    whole = told["structure"] == "AL-AM"
    scores = [importance.standardised(s) for s in scores] if whole else scores
    units = [importance.of_units(s, width if n % 2 == 0 else 1) for n, s in enumerate(scores)]
    share, costs = told["pruning_ratio"], [170, 1] * told["layers"]  # the authors' 512 // 3
    kept = (
        importance.best_of_all(units, costs, share) if whole else importance.best_of_each(units, [share] * len(units))
    )
    for n, keep in enumerate(kept):
        name, short = ("heads", "o") if n % 2 == 0 else ("neurons", "d")
        assert torch.equal(keep, wanted[f"kept_{name}_{n // 2}"])
        lost = ~keep.repeat_interleave(width if name == "heads" else 1)
        bias = weights[n][:, lost] @ seen[n].mean[lost]
        torch.testing.assert_close(bias, wanted[f"bias_{short}_{n // 2}"], rtol=0, atol=1e-3)


def test_costs_that_are_not_rounded_choose_the_same_here():
    """512 : 3 instead of 170 : 1, as the passes weigh a head of 128 against a neuron."""
    generator = torch.Generator().manual_seed(0)
    units = [torch.randn(n, generator=generator) for n in (8, 96, 8, 96)]
    exact = importance.best_of_all(units, [512, 3] * 2, 0.3)
    spent = sum(float((~k).sum()) * c for k, c in zip(exact, [512, 3] * 2, strict=True))
    assert spent / (2 * (8 * 512 + 96 * 3)) == pytest.approx(0.3, abs=0.06)


def test_a_share_that_empties_a_layer_names_the_bound():
    scores = [torch.tensor([0.1, 0.2]), torch.arange(1.0, 9.0)]
    with pytest.raises(WeightsError, match=r"at most 0\.049 ") as caught:
        importance.best_of_all(scores, [1, 1], 0.5)
    assert "across=layer" in str(caught.value)
    kept = importance.best_of_all(scores, [1, 1], 0.049)
    assert [int(k.sum()) for k in kept] == [1, 8]


def test_a_layer_below_all_others_cannot_be_pruned_over_all():
    with pytest.raises(WeightsError, match="no share is small enough"):
        importance.best_of_all([torch.tensor([0.0]), torch.tensor([1.0, 2.0])], [1, 1], 0.3)


def test_equal_scores_stay():
    (keep,) = importance.best_of_each([torch.ones(10)], [0.5])
    assert bool(keep.all())


def test_dead_and_constant_channels_cost_nothing_but_their_mean():
    x = torch.randn(3, 20, 4, generator=torch.Generator().manual_seed(1))
    x[..., 1], x[..., 2] = 0, 5.0
    seen = seen_by(x)
    assert float(seen.fluctuation[1:3].max()) < 1e-8
    assert float(seen.mean[2]) == pytest.approx(5)
    assert bool(torch.isfinite(importance.standardised(torch.zeros(4))).all())


def test_numbers_that_are_not_finite_are_refused():
    with pytest.raises(WeightsError, match="not finite"):
        Channels.empty(2).add(torch.tensor([[1.0, float("nan")]]))


def test_tokens_that_weigh_nothing_do_not_count():
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(2))
    label = torch.tensor([0, 1, 1, 2, 2, 2])
    weight = weights_of(label, "balanced")
    assert float(weight[label == 1].sum()) == pytest.approx(float(weight[label == 2].sum()))
    assert weight.sum() == pytest.approx(5) and weight[0] == 0
    got, same = Channels.empty(3).add(x, weights_of(label, "pooled")), Channels.empty(3).add(x[1:])
    torch.testing.assert_close(got.mean, same.mean)
    assert weights_of(label, (2.0, 0.0)).tolist() == [0, 0, 0, 2, 2, 2]
    assert weights_of(torch.tensor([1, 1, 0]), "balanced").tolist() == [1, 1, 0]


def test_magnitude_is_the_norm_of_everything_the_unit_holds():
    reader, makers = torch.ones(3, 4), [torch.full((4, 2), 2.0), torch.ones(2, 2)]
    got = importance.of_units(importance.magnitude(reader, makers, 2), 2)
    assert got.tolist() == [(2 * 3 + 2 * 8 + 2) / 2] * 2


def test_unlikeness_is_zero_for_what_only_grows():
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(3))
    assert float(importance.unlikeness(x, 3 * x).abs().max()) < 1e-6
    assert float(importance.unlikeness(x, -x).min()) == pytest.approx(2)


def test_shares_by_influence_add_up_and_keep_their_order():
    influence = torch.tensor([0.5, 0.1, 0.1, 0.2])
    shares = importance.shares_by(influence, 0.3, 0.5)
    assert sum(shares) / 4 == pytest.approx(0.3) and min(shares) == pytest.approx(0.15)
    assert shares[1] == shares[2] == max(shares) < 0.45 and shares[3] < shares[1]
    assert importance.shares_by(torch.full((3,), 0.2), 0.3, 0.5) == pytest.approx([0.3] * 3)
