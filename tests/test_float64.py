"""On a device without float64 (MPS; pretended, ``tests/float64.py``) every method runs: prefill and generation."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

import vtc
from tests import zoo
from tests.float64 import NoFloat64
from tests.support import METHODS, generate, served
from vtc.kernels import float64
from vtc.kernels.float64 import in_float64
from vtc.kernels.greedy_diverse import greedy_diverse
from vtc.methods._ranks import portion


@pytest.mark.parametrize("method", METHODS)
def test_a_picture_needs_no_float64(method, model_of):
    model = model_of("llava")
    prompt = zoo.batch([zoo.prompt(model, 2), zoo.prompt(model, 1)])
    vtc.patch(model, method, budget=0.5)
    with NoFloat64():
        generate(model, prompt, 2)


@pytest.mark.parametrize("method", METHODS)
def test_a_video_needs_no_float64(method, model_of):
    model = model_of("qwen2_5_vl")
    prompt = zoo.video_prompt(model)
    vtc.patch(model, method, budget=0.5)
    with NoFloat64():
        generate(model, prompt, 2)


@served("visionzip")
def test_no_family_needs_float64(family, model_of):
    model = model_of(family)
    vtc.patch(model, "visionzip", budget=0.5)
    with NoFloat64():
        generate(model, zoo.prompt(model, 1), 2)


@served("tome")
def test_merging_in_the_tower_needs_no_float64(family, model_of):
    model = model_of(family)
    vtc.patch(model, "tome", budget=0.5)
    with NoFloat64():
        generate(model, zoo.prompt(model, 1), 2)


def test_the_check_sees_float64(monkeypatch):
    """The negative control."""
    x, corners = torch.ones(3), torch.eye(3)[None]
    with NoFloat64(), pytest.raises(RuntimeError, match="MPS has no float64"):
        x.double()
    with NoFloat64(), pytest.raises(RuntimeError, match="MPS has no float64"):
        in_float64(lambda x: x.double(), x) + x
    with NoFloat64():
        assert in_float64(lambda x: x.double().sum(0, keepdim=True).float(), x).tolist() == [3]
        greedy_diverse(corners, 2, "coverage", corners[:, 0] >= 0)
    monkeypatch.setattr("vtc.kernels.greedy_diverse.in_float64", lambda compute, *tensors: compute(*tensors))
    with NoFloat64(), pytest.raises(RuntimeError, match="MPS has no float64"):  # inside an operation of vtc's own
        greedy_diverse(corners, 2, "coverage", corners[:, 0] >= 0)


def test_float64_is_looked_for_elsewhere(monkeypatch):
    """Where the device has none the tensors go to the CPU, and the result comes back."""
    monkeypatch.setattr(float64, "WITHOUT", ("meta",))
    with pytest.raises(NotImplementedError, match="meta"):  # its tensors hold nothing that could go
        in_float64(torch.neg, torch.ones(1, device="meta"))


def test_a_portion_is_that_of_fractions():
    counts = torch.arange(2000)
    for share in (0.0, 0.25, 0.29, 0.4, 0.6, 1 / 3, 1 - 0.3, 1.0):
        exact = Fraction(share).limit_denominator(100)
        assert portion(counts, share).tolist() == [int(n * exact) for n in range(2000)]
