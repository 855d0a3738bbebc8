"""torch.compile: a patched model compiles, and a model compiled before it is patched does not ignore the patch."""

from __future__ import annotations

import pytest
import torch

import vtc
from tests import zoo
from tests.support import logits
from tests.tolerances import assert_close


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "share"),
    [("divprune", False), ("divprune", True), ("fastv", False), ("tome", True), ("adaptive", True), ("frozen", False)],
)
def test_a_patched_model_compiles(method, share):
    model = zoo.build("llava", layers=3)
    prompt = zoo.prompt(model, 1)
    vtc.patch(model, method, budget=0.5, share=share)
    want = logits(model, prompt)
    compiled = torch.compile(model, backend="aot_eager")
    assert_close("compiled", logits(compiled, prompt), want)
    assert vtc.report(compiled).average_tokens == 18


@pytest.mark.parametrize("how", ["in place", pytest.param("wrapper", marks=pytest.mark.slow)])
def test_a_compiled_model_does_not_ignore_the_patch(how):
    model = zoo.build("llava", layers=2)
    prompt = zoo.prompt(model, 1)
    if how == "wrapper":
        model = torch.compile(model, backend="eager")
    else:
        model.compile(backend="eager")
    plain = logits(model, prompt)
    vtc.patch(model, "divprune", budget=0.25)
    ours = logits(model, prompt)
    assert vtc.report(model).average_tokens == 9
    assert not torch.equal(ours, plain)
    vtc.unpatch(model)
    assert_close("after unpatch", logits(model, prompt), plain)
