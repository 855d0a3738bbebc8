"""Pruning in steps with healing between."""

import pytest
import torch
from transformers import AutoModelForImageTextToText

import vtc
from tests import zoo
from tests.weights.runs import prompts
from vtc.errors import WeightsError
from vtc.weights import in_steps, incrementally
from vtc.weights.codec.linear import CompressedLinear
from vtc.weights.formats import hf


def test_steps_remove_the_whole_share_and_heal_between():
    model, healed = zoo.build("llava"), []
    steps = in_steps("neurons:share=0.25:score=norm", by=0.05)
    assert len(steps) == 5

    def heal(healing, n):
        assert all(p.requires_grad for p in healing.model.language_model.layers.parameters())
        healed.append((n, healing.model.language_model.layers[0].mlp.up_proj.out_features))
        healing.model.language_model.layers[0].mlp.up_proj.weight.data.mul_(1.01)

    incrementally(model, steps, prompts(model), heal)
    sizes = [size for _, size in healed]
    assert [n for n, _ in healed] == [0, 1, 2, 3, 4]
    assert sizes == sorted(sizes, reverse=True) and 72 <= sizes[-1] <= 76
    assert hf.config_of(model).manifest["before"]["recipe"]["passes"][0]["pass"] == "neurons"
    vtc.compress(model, "gptq:bits=8:group=8", prompts(model), progress=False)
    assert any(isinstance(m, CompressedLinear) for m in model.modules())
    with pytest.raises(WeightsError, match="compressed already"):
        vtc.compress(model, "neurons", prompts(model), progress=False)


def test_a_loaded_one_goes_on(tmp_path):
    model = zoo.build("llava")
    vtc.compress(model, "neurons:share=0.25", prompts(model), progress=False)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    for each in (model, loaded):
        vtc.compress(each, "heads:share=0.5|rtn:bits=8:group=8", prompts(each), progress=False)
    assert torch.equal(loaded(**prompts(loaded)[0]).logits, model(**prompts(model)[0]).logits)
    assert hf.config_of(loaded).layers == hf.config_of(model).layers


def test_steps_stop_where_one_fails():
    model = zoo.build("llava")
    with pytest.raises(ZeroDivisionError):
        incrementally(model, in_steps("neurons:share=0.2"), prompts(model), lambda model, n: 1 // 0)
    assert model.model.language_model.layers[0].mlp.up_proj.out_features == 92
    with pytest.raises(WeightsError, match="one pass"):
        in_steps("neurons|heads")
    with pytest.raises(WeightsError, match="healed"):
        incrementally(model, ["gptq"], prompts(model))
    with pytest.raises(WeightsError, match="calibration"):
        incrementally(model, ["neurons"])
