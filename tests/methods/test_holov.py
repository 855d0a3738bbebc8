import pytest
import torch

from tests.golden import cases
from tests.pictures import batch, picture, plain
from tests.tolerances import assert_same
from vtc.methods.holov import HoloV, quotas, runs
from vtc.signals.tower_attention import TowerAttention


@pytest.mark.parametrize(("given", "want", "params"), cases("holov"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_the_authors(given, want, params, dtype):
    """Their zero tokens (-1) are other tokens here."""
    tokens, attention = plain(given["x"].to(dtype)), given["attn"].to(dtype)
    crop, wanted = runs(tokens, params["crops"]), [params["T"]]
    assert_same("quota", quotas(attention, crop, params["crops"], tokens, wanted)[0], want["quota"])
    got = HoloV(crops=params["crops"]).reduce(0, tokens, {TowerAttention(-2): attention}, wanted).anchor[0]
    theirs = want["positions"][want["positions"] >= 0]
    assert len(got) == params["T"] and set(theirs.tolist()) <= set(got.tolist())


def test_runs_are_near_equal():
    tokens = batch([picture((1, 5, 7), 1), picture((1, 1, 3), 2), picture((1, 4, 4), 3)])
    crop = runs(tokens, 8)
    assert crop[0].bincount(minlength=8).tolist() == [5, 5, 5, 4, 4, 4, 4, 4]
    assert crop[1, :3].tolist() == [0, 1, 2]
    assert crop[2, :16].bincount(minlength=8).tolist() == [2] * 8
    assert (crop[0].diff() >= 0).all()


def test_a_run_keeps_in_proportion_to_its_attention():
    tokens = batch([picture((1, 4, 4), 1)])
    attention = torch.tensor([[4.0] * 4 + [2.0] * 4 + [1.0] * 8])
    crop = runs(tokens, 4)
    assert quotas(attention, crop, 4, tokens, [8]).tolist() == [[4, 2, 1, 1]]
    kept = HoloV(crops=4).reduce(0, tokens, {TowerAttention(-2): attention}, [8]).anchor[0]
    assert kept.tolist() == [0, 1, 2, 3, 4, 5, 8, 12]


def test_what_a_run_can_not_use_goes_to_the_best_elsewhere():
    tokens = batch([picture((1, 4, 4), 1)])
    attention = torch.tensor([[100.0] * 4 + [0.1, 0.2, 0.4, 0.3] + [0.0] * 8])
    kept = HoloV(crops=4).reduce(0, tokens, {TowerAttention(-2): attention}, [6]).anchor[0]
    assert kept.tolist() == [0, 1, 2, 3, 6, 7]


@pytest.mark.parametrize("crops", [0, -1, 2.0, True, "16", None])
def test_bad_options(crops):
    with pytest.raises(ValueError, match=r"crops=.* is not an int >= 1"):
        HoloV(crops=crops)
