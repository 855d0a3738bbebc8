"""Spending by need: a picture's tokens are its own affair, and the mean over the calibration meets the budget."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import mean

import pytest
import torch

import vtc
from tests import zoo
from tests.checkpoint.edits import edit
from tests.support import kept, logits
from vtc.budget.spend import Spend, needs, settle
from vtc.checkpoint.save_load import CONFIG
from vtc.errors import CheckpointError
from vtc.methods import Adaptive, DivPrune, FastV

BUDGET = 12
SOME = [
    ("llava", "divprune"),
    ("llava", "adaptive:layer=null"),
    ("llava_next", "divprune"),
    ("qwen2_5_vl", "visionzip"),
]


def some_prompts(model, count=6):
    """Pictures from almost flat (in one quite flat all tokens tie) to noisy, so that their needs differ."""
    prompts = [zoo.prompt(model, 1 + n % 2, seed=n) for n in range(count)]
    for n, prompt in enumerate(prompts):
        pixels = prompt["pixel_values"]
        prompt["pixel_values"] = pixels * (share := (n + 0.1) / count) + pixels.mean() * (1 - share)
    return prompts


def calibrated(model, budget=BUDGET, **bounds):
    return vtc.calibrate_spend(model, some_prompts(model), budget, power=1, progress=False, **bounds)


def pictures_of(model, prompts):
    found = []
    for prompt in prompts:
        logits(model, prompt)
        found += vtc.report(model).pictures
    return found


@pytest.mark.parametrize(("family", "method"), SOME)
def test_the_mean_meets_the_budget_and_bounds_hold(family, method):
    model = zoo.build(family)
    spend = calibrated(model)
    vtc.patch(model, method, budget=BUDGET, spend=spend)
    pictures = pictures_of(model, some_prompts(model))
    averages = [p.average for p in pictures]
    assert mean(averages) <= BUDGET
    assert all(BUDGET // 2 <= spend.own(p.tokens_in, p.need) <= 2 * BUDGET for p in pictures)
    assert all(a <= spend.own(p.tokens_in, p.need) for a, p in zip(averages, pictures, strict=True))
    low, middle, high = spend.spread
    assert BUDGET - 1 < middle <= BUDGET and low < middle < high, "they differ, or nothing is shown"
    if method == "divprune":
        assert (min(averages), mean(averages), max(averages)) == spend.spread


@pytest.mark.parametrize(("family", "method"), SOME)
def test_a_picture_keeps_the_same_tokens_alone_and_in_a_batch(family, method):
    model = zoo.build(family, dtype=torch.float64)
    prompts = [{k: v.double() if v.is_floating_point() else v for k, v in p.items()} for p in some_prompts(model)]
    spend = vtc.calibrate_spend(model, prompts, BUDGET, power=1, progress=False)
    vtc.patch(model, method, budget=BUDGET, spend=spend)
    alone = []
    for prompt in prompts:
        logits(model, prompt)
        alone += kept(model)
    assert len({len(tokens) for tokens in alone}) > 1
    logits(model, zoo.batch(prompts))
    assert kept(model) == alone


def test_the_report_shows_the_spread():
    model = zoo.build("llava")
    spend = calibrated(model)
    vtc.patch(model, "divprune", budget=BUDGET, spend=spend)
    logits(model, zoo.batch(some_prompts(model)))
    report = vtc.report(model)
    assert report.spread == spend.spread
    assert f"by need from {spend.spread[0]:.1f} to {spend.spread[2]:.1f}" in str(report)
    assert all(p.need > 0 for p in report.pictures)


def test_equal_spending_is_as_before():
    model, prompts = zoo.build("llava"), some_prompts(zoo.build("llava"))
    vtc.patch(model, "divprune", budget=BUDGET)
    plain = logits(model, zoo.batch(prompts))
    assert "by need" not in str(vtc.report(model)) and vtc.report(model).pictures[0].need is None
    assert vtc.report(model).spread == (BUDGET, BUDGET, BUDGET)
    vtc.patch(model, "divprune", budget=BUDGET, spend="equal")
    assert torch.equal(logits(model, zoo.batch(prompts)), plain)
    everyone_alike = Spend(budget=BUDGET, level=1.0, least=1.0, most=1.0)
    vtc.patch(model, "divprune", budget=BUDGET, spend=everyone_alike)
    assert torch.equal(logits(model, zoo.batch(prompts)), plain)


def test_calibration_leaves_the_model_alone_and_takes_bounds():
    model = zoo.build("llava")
    prompts = some_prompts(model)
    before = [logits(model, p) for p in prompts]
    spend = calibrated(model, budget=0.5, least=0.9, most=1.1)
    assert all(torch.equal(logits(model, p), want) for p, want in zip(prompts, before, strict=True))
    low, middle, high = spend.spread
    assert 0.9 * 18 <= low <= middle <= 18 and high <= 1.1 * 18


def test_gradients_and_combined_methods():
    model = zoo.build("llava")
    spend = calibrated(model)
    vtc.patch(model, ["divprune", FastV(layer=2)], budget=BUDGET, spend=spend)
    pictures = pictures_of(model, some_prompts(model))
    assert 0.7 * BUDGET < mean(p.average for p in pictures) <= BUDGET
    vtc.patch(model, "divprune", budget=BUDGET, share=True, spend=spend)
    model(**some_prompts(model)[1]).logits.sum().backward()
    assert model.get_input_embeddings().weight.grad is not None


def test_it_is_saved_with_the_model(tmp_path):
    model = zoo.build("llava")
    spend = calibrated(model)
    vtc.patch(model, Adaptive(layer=2, spend=spend), budget=BUDGET)
    logits(model, zoo.batch(some_prompts(model)))
    want = kept(model)
    vtc.save(model, tmp_path)
    loaded = vtc.load(tmp_path)
    assert vtc.patch_of(loaded).method == Adaptive(layer=2, spend=spend)
    logits(loaded, zoo.batch(some_prompts(model)))
    assert kept(loaded) == want
    options = json.loads((tmp_path / CONFIG).read_text())["options"]
    for broken in ({"level": -1.0}, {"surprise": 1}):
        options["spend"] |= broken
        edit(tmp_path, options=options)
        with pytest.raises(CheckpointError, match="level|surprise"):
            vtc.load(tmp_path)


def test_bad_input():
    model = zoo.build("llava")
    with pytest.raises(ValueError, match="not calibrated.*calibrate_spend"):
        vtc.patch(model, "divprune", budget=BUDGET, spend="adaptive")
    with pytest.raises(ValueError, match="needs prompts with pictures"):
        vtc.calibrate_spend(model, [{"input_ids": torch.tensor([[1, 2, 3]])}], BUDGET, progress=False)
    spend = Spend(budget=BUDGET, level=3.0)
    with pytest.raises(ValueError, match="calibrated at budget 12 and the patch has 6"):
        vtc.patch(model, "divprune", budget=6, spend=spend)
    assert vtc.patch_of(model) is None
    for method in ("fastv", "tome"):
        with pytest.raises(ValueError, match="first cut at the decoder's input"):
            vtc.patch(model, method, budget=BUDGET, spend=spend)
    with pytest.raises(ValueError, match="all of them together"):
        vtc.patch(model, [DivPrune(spend=spend), FastV()], budget=BUDGET)
    for wrong in (
        {"level": 0.0},
        {"level": float("nan")},
        {"least": 1.5},
        {"most": 0.5},
        {"most": True},
        {"power": 1.5},
    ):
        with pytest.raises(ValueError, match="spend: "):
            replace(spend, **wrong)


def test_need_is_the_effective_rank():
    """Tokens in r orthogonal directions, as many in each, have need r - 1; NaN tokens and padding do not count."""
    for rank in (1, 3, 8):
        tokens = torch.eye(8)[torch.arange(24) % rank] * torch.rand(24, 1).add(0.1)
        (need,) = needs(tokens[None], [24])
        assert need == pytest.approx(rank - 1, rel=1e-5, abs=1e-5)
        wide = torch.nn.functional.pad(tokens, (0, 40))  # fewer tokens than features: the other product
        assert needs(wide[None], [24]) == pytest.approx([need], abs=1e-5)
        padded = torch.cat([tokens, torch.full((1, 8), float("nan")), torch.randn(5, 8)])
        assert needs(padded[None], [25]) == pytest.approx([need], abs=1e-5)


def test_settled_means_never_exceed_the_budget():
    generator = torch.Generator().manual_seed(1)
    assert settle([0.0, 0.0], [9, 5], 4).spread == (2.0, 2.0, 2.0)  # all flat: nobody needs more than the least
    for budget in (1, 2, 7, 40, 0.1, 0.5, 1.0):
        counts = torch.randint(1, 60, (9,), generator=generator).tolist()
        found = (20 * torch.rand(9, generator=generator)).tolist()
        spend = settle(found, counts, budget)
        fair = [vtc.Budget(budget).tokens(n) for n in counts]
        own = [spend.own(n, need) for n, need in zip(counts, found, strict=True)]
        assert mean(own) == spend.spread[1] <= mean(fair)
        assert all(1 <= k <= n and f / 2 <= k <= 2 * f for k, n, f in zip(own, counts, fair, strict=True))
        higher = replace(spend, level=spend.level * 0.9)
        assert mean(higher.own(n, need) for n, need in zip(counts, found, strict=True)) >= mean(own)


def test_the_order_of_a_run_does_not_matter():
    model = zoo.build("llava")
    prompts = some_prompts(model)
    vtc.patch(model, "divprune", budget=BUDGET, spend=calibrated(model))
    forth = [[p.average for p in pictures_of(model, [prompt])] for prompt in prompts]
    back = [[p.average for p in pictures_of(model, [prompt])] for prompt in prompts[::-1]]
    assert forth == back[::-1]
