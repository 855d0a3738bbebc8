"""Kernel or reference: what ``VTC_KERNELS`` decides, and what it says when it can not."""

import subprocess
import sys

import pytest
import torch

from vtc.kernels import dispatch
from vtc.kernels.dispatch import config, mode, power, use_triton


def test_a_cpu_takes_the_reference_and_never_loads_a_kernel(monkeypatch):
    monkeypatch.delenv("VTC_KERNELS", raising=False)
    assert not use_triton(torch.ones(1))
    code = """
import sys, torch
from vtc.kernels.match import match
from vtc.kernels.merge import merge
from vtc.kernels.greedy_diverse import greedy_diverse
from vtc.kernels.received_attention import received_attention
x = torch.ones(1, 3, 4)
match(x, x, torch.ones(1, 3) > 0), greedy_diverse(x, 2, "maxmin", torch.ones(1, 3) > 0)
merge(x, torch.zeros(1, 3).long(), None, torch.ones(1, 3), 1), received_attention(x[None], x[None])
print([m for m in sys.modules if m.startswith("vtc") and m.endswith("_triton")])
"""
    environment = {"VTC_KERNELS": "auto", "PATH": ""}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert run.stdout == "[]\n", run.stdout + run.stderr


def test_a_mode_that_is_none(monkeypatch):
    monkeypatch.setenv("VTC_KERNELS", "fast")
    with pytest.raises(ValueError, match="VTC_KERNELS='fast' is not one of auto, reference, triton"):
        mode()


def test_kernels_that_can_not_run(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("VTC_KERNELS", "triton")
    if dispatch.interpreted():
        pytest.skip("here they can")
    with pytest.raises(ValueError, match=r"a tensor is on cpu .*; set VTC_KERNELS=auto"):
        use_triton(torch.ones(1))


def test_no_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setenv("VTC_KERNELS", "triton")
    dispatch._installed.cache_clear()
    try:
        with pytest.raises(ValueError, match="Triton can not be imported .*pip install 'triton>=3.6'"):
            use_triton(torch.ones(1))
    finally:
        dispatch._installed.cache_clear()


@pytest.mark.parametrize("choice", ["auto", "reference", "triton"])
def test_float64_and_a_wish_take_the_reference(choice, monkeypatch):
    monkeypatch.setenv("VTC_KERNELS", choice)
    assert not use_triton(torch.ones(1, dtype=torch.float64))
    monkeypatch.setenv("VTC_KERNELS", "reference")
    assert not use_triton(torch.ones(1))


def test_settings_of_the_nearest_older_chip():
    table = {80: "ampere", 90: "hopper"}
    assert [config(table, chip) for chip in (75, 80, 89, 90, 120)] == ["ampere", "ampere", "ampere", "hopper", "hopper"]
    assert [power(n) for n in (1, 16, 17, 80, 128)] == [16, 16, 32, 128, 128]
