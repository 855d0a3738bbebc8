"""Decoder layers that borrow weights, as a pass: built, saved, loaded, refused."""

import copy
import json

import pytest
import torch

import vtc
from tests import zoo
from tests.weights.runs import prompts
from vtc.errors import CheckpointError, WeightsError
from vtc.weights.calibration.block_walk import Walk
from vtc.weights.codec.linear import CompressedLinear
from vtc.weights.formats import hf
from vtc.weights.healing.distill import healer
from vtc.weights.passes.borrow import statistics
from vtc.weights.structure.sharing import BorrowedLinear

RECIPE = "borrow:share=0.25:rank=4"


def made(recipe=RECIPE, family="llava"):
    model = zoo.build(family)
    return vtc.compress(model, recipe, prompts(model), progress=False)


def logits(model):
    with torch.no_grad():
        return model(**zoo.prompt(model)).logits


def borrowing(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, BorrowedLinear)}


def bytes_of(folder):
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))


@pytest.mark.parametrize("recipe", [RECIPE, f"{RECIPE}|rtn:bits=8:group=8", f"{RECIPE}:norm=false"])
@pytest.mark.parametrize("family", ["llava", pytest.param("qwen2_5_vl", marks=pytest.mark.slow)])
def test_saved_and_loaded_is_the_same_in_fewer_bytes(recipe, family, tmp_path):
    model = made(recipe, family)
    assert len(borrowing(model)) == 7 and bool(torch.isfinite(logits(model)).all())
    vtc.save(model, tmp_path / "shared", verify=True)
    zoo.build(family).save_pretrained(tmp_path / "whole")
    assert bytes_of(tmp_path / "shared") < 0.9 * bytes_of(tmp_path / "whole")
    loaded = vtc.load(tmp_path / "shared")
    assert torch.equal(logits(loaded), logits(model))
    for borrower in borrowing(loaded).values():
        assert any(borrower.lender is module for module in loaded.modules())
    assert torch.equal(logits(copy.deepcopy(loaded)), logits(model))


def test_lenders_are_left_alone_by_later_passes():
    model = made(f"{RECIPE}|rtn:bits=4:group=8")
    lenders = {id(b.lender) for b in borrowing(model).values()}
    assert lenders <= {id(m) for m in model.modules()}
    assert sum(isinstance(m, CompressedLinear) for m in model.modules()) == 7 * 2  # of 4: one borrows, one lends


def test_the_output_has_the_statistics_of_the_layer_it_replaces():
    plain, model = zoo.build("llava"), made()
    n = next(n for n, block in enumerate(model.model.language_model.layers) if hasattr(block, "output_norm"))
    without = made(f"{RECIPE}:norm=false")
    want, have, less = (statistics(Walk(m, prompts(m)), [n])[n] for m in (plain, model, without))
    for k in (0, 1):
        torch.testing.assert_close(have[k], want[k], rtol=1e-3, atol=1e-4)
        assert not torch.allclose(less[k], want[k], rtol=1e-3, atol=1e-4)


def test_adapters_are_trained():
    model, teacher = made(), zoo.build("llava")
    before = {name: m.u.detach().clone() for name, m in borrowing(model).items()}
    losses = healer(teacher, prompts(teacher), steps=8, lr=1e-3)(model, 0)
    assert losses[-1] < losses[0]
    assert all(not torch.equal(m.u, before[name]) for name, m in borrowing(model).items())


def test_under_a_token_patch():
    model = zoo.build("llava")
    vtc.patch(model, "divprune", budget=4)
    vtc.compress(model, RECIPE, prompts(model), progress=False)
    assert vtc.patch_of(model) is not None and bool(torch.isfinite(logits(model)).all())


def test_an_error_afterwards_undoes_it(monkeypatch):
    model = zoo.build("llava")
    before, names = logits(model), [name for name, _ in model.named_modules()]
    model.model.language_model.layers[0].mlp.extra = torch.nn.Linear(8, 8)  # never runs
    with pytest.raises(WeightsError):
        vtc.compress(model, f"{RECIPE}|gptq:bits=4:group=8", prompts(model), progress=False)
    del model.model.language_model.layers[0].mlp.extra
    assert [name for name, _ in model.named_modules()] == names and torch.equal(logits(model), before)


@pytest.mark.parametrize(
    "recipe, told",
    [
        ("borrow:share=0.05", "1 to 3"),
        ("borrow:share=0.95", "1 to 3"),
        ("borrow:rank=0", "from 1 on"),
        ("borrow:rank=1000", "not between 1 and"),
        ("borrow:norm=2", "true or false"),
        ({"passes": ["borrow"], "skip": ["q_proj"]}, "leave skip"),
        (f"{RECIPE}|neurons", "before it is compressed or adapted"),
    ],
)
def test_what_cannot_be_borrowed(recipe, told):
    model = zoo.build("llava")
    before = logits(model)
    with pytest.raises(WeightsError, match=told):
        vtc.compress(model, recipe, prompts(model), progress=False)
    assert torch.equal(logits(model), before) and hf.config_of(model) is None


def test_a_lender_that_is_gone_is_told():
    layer = next(iter(borrowing(made()).values()))
    with pytest.raises(WeightsError, match="borrow last"):
        hf.written(layer, True, {})


def test_twice_and_other_formats_are_refused(tmp_path):
    model = made()
    with pytest.raises(WeightsError, match="borrow already"):
        vtc.compress(model, RECIPE, prompts(model), progress=False)
    for recipe in (RECIPE, "neurons:share=0.25"):  # neither sizes nor lenders are in the model's own config
        with pytest.raises(CheckpointError, match="cannot express"):
            vtc.save(made(f"{recipe}|rtn:bits=8:group=8"), tmp_path / "out", format="compressed-tensors")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, told",
    [
        (lambda layer: layer.update(rank=0), "rank 0"),
        (lambda layer: layer.update(rank="4"), "rank is '4'"),
        (lambda layer: layer.update(borrows="no.such.layer"), "matches 0 layers"),
        (lambda layer: layer.update(borrows="lm_head"), "cannot borrow"),
    ],
)
def test_descriptions_that_lie(change, told, tmp_path):
    made().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    layer = next(v for v in config["quantization_config"]["layers"].values() if "borrows" in v)
    change(layer)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=told):
        type(zoo.build("llava")).from_pretrained(tmp_path)
